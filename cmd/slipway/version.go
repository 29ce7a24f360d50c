package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// protocol is the version of package slipway.v1 that this client speaks.
const protocol = 1

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this program",
		Args: exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := struct {
				Version  string `json:"version"`
				Revision string `json:"revision"`
				Go       string `json:"go"`
				Platform string `json:"platform"`
				Protocol uint32 `json:"protocol"`
			}{p.version, revision(), runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH, protocol}
			return p.print(v, func(w io.Writer) {
				fmt.Fprintf(w, "slipway %s", v.Version)
				if v.Revision != "" {
					fmt.Fprintf(w, " (%s)", v.Revision)
				}
				fmt.Fprintf(w, ", %s, %s, protocol %d\n", v.Go, v.Platform, v.Protocol)
			})
		},
	}
}

// revision is the commit that the program was built from, if that is known.
func revision() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return ""
}
