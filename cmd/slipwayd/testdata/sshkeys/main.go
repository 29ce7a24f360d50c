// Command sshkeys is what a RUN step of a test does with its SSH agent: it
// lists the keys, signs with each, and tries to remove them.
package main

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh/agent"
)

func main() {
	conn, err := net.Dial("unix", os.Getenv("SSH_AUTH_SOCK"))
	if err != nil {
		fmt.Println("no agent:", err)
		os.Exit(3)
	}
	a := agent.NewClient(conn)
	keys, err := a.List()
	if err != nil {
		fmt.Println("list:", err)
		os.Exit(4)
	}
	for _, k := range keys {
		sig, err := a.Sign(k, []byte("data"))
		if err == nil {
			err = k.Verify([]byte("data"), sig)
		}
		fmt.Println("key", k.String(), "signs:", err == nil)
	}
	if a.RemoveAll() == nil {
		fmt.Println("removed them all")
	}
}
