package classic_test

import (
	"fmt"
	"strings"
	"testing"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// BenchmarkSteps runs steps that do next to nothing: what is measured is what
// a step costs.
func BenchmarkSteps(b *testing.B) {
	for name, step := range map[string]string{"run": "RUN echo %d", "env": "ENV A%d=b", "copy": "COPY f /f%d"} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b)
			dir := b.TempDir()
			w.write(dir, map[string]string{"f": "x"})
			lines := []string{"FROM fid/base:1"}
			for i := range 20 {
				lines = append(lines, fmt.Sprintf(step, i))
			}
			r := request{dir: dir, dockerfile: strings.Join(lines, "\n"), start: &slipwayv1.Start{NoCache: true}}
			w.build(b.Context(), r)
			for b.Loop() {
				if o := w.build(b.Context(), r); o.Error != nil {
					b.Fatal(o.Error)
				}
			}
		})
	}
}
