// Command hello is a small program to build an image around. "hello render"
// writes all greetings into one file, which the Dockerfile does in a RUN step;
// without arguments it prints that file.
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strings"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("hello: ")
	var err error
	switch args := os.Args[1:]; {
	case len(args) == 0:
		err = show("/greetings.txt")
	case len(args) == 3 && args[0] == "render":
		err = render(args[1], args[2])
	default:
		err = fmt.Errorf("usage: hello [render DIRECTORY FILE]")
	}
	if err != nil {
		log.Fatal(err)
	}
}

func show(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

// render joins the texts of a directory, in the order of their names.
func render(dir, file string) error {
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		out.Write(text)
	}
	fmt.Printf("%d greetings\n", len(names))
	return os.WriteFile(file, []byte(out.String()), 0o644)
}
