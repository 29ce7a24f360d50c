// Package rescue keeps a panic in one goroutine of a build from ending the
// daemon: it becomes the error of what the goroutine did. Whoever starts a
// goroutine for a build defers [Into] in it, or calls [Run].
package rescue

import (
	"fmt"
	"runtime/debug"
)

// A Panic is a panic as an error. Its text, for logs, has the stack.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v\n%s", p.Value, p.Stack) }

// Into, deferred, puts the panic of the function that defers it into err, if
// there is one.
func Into(err *error) {
	if v := recover(); v != nil {
		*err = &Panic{Value: v, Stack: debug.Stack()}
	}
}

// Run calls f and returns its error, or its panic as one.
func Run(f func() error) (err error) {
	defer Into(&err)
	return f()
}
