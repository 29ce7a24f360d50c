// Command agent says "ping" to $SSH_AUTH_SOCK and prints what it hears.
package main

import (
	"fmt"
	"net"
	"os"
)

func main() {
	c, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err == nil {
		_, err = c.Write([]byte("ping"))
	}
	heard := make([]byte, 100)
	n := 0
	if err == nil {
		n, err = c.Read(heard)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Printf("%s", heard[:n])
}
