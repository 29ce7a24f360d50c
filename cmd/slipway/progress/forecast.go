package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	slipwayv1 "github.com/slipwayhq/slipway/proto/slipway/v1"
)

// Forecast says what a build would do, as JSON has it.
type Forecast struct {
	Steps       []ForecastStep `json:"steps"`
	Files       uint64         `json:"files"`
	Bytes       uint64         `json:"bytes"`
	SendFiles   uint64         `json:"send_files"`
	SendBytes   uint64         `json:"send_bytes"`
	RootfsBytes uint64         `json:"rootfs_bytes"`
	RootfsLimit uint64         `json:"rootfs_limit"`
	RootfsKnown bool           `json:"rootfs_known"`
	PushLayers  uint32         `json:"push_layers"`
	PushBytes   uint64         `json:"push_bytes"`
	DurationMS  int64          `json:"duration_ms"`
	Samples     uint32         `json:"samples"`
}

// ForecastStep is one step of a forecast.
type ForecastStep struct {
	Step    uint32 `json:"step"`
	Stage   string `json:"stage"`
	Number  uint32 `json:"number"`
	Total   uint32 `json:"total"`
	Source  string `json:"source"`
	Line    uint32 `json:"line"`
	Cached  bool   `json:"cached"`
	Unknown bool   `json:"unknown"`
	Miss    string `json:"miss"`
	Why     *Miss  `json:"why"`
	label   string
}

// NewForecast returns f for JSON.
func NewForecast(f *slipwayv1.Forecast) *Forecast {
	out := &Forecast{
		Steps: []ForecastStep{}, Files: f.GetFiles(), Bytes: f.GetBytes(), SendFiles: f.GetSendFiles(), SendBytes: f.GetSendBytes(),
		RootfsBytes: f.GetRootfsBytes(), RootfsLimit: f.GetRootfsLimit(), RootfsKnown: f.GetRootfsKnown(),
		PushLayers: f.GetPushLayers(), PushBytes: f.GetPushBytes(), DurationMS: f.GetDurationMs(), Samples: f.GetSamples(),
	}
	for _, s := range f.GetSteps() {
		p := s.GetStep()
		out.Steps = append(out.Steps, ForecastStep{
			Step: p.GetStep(), Stage: p.GetStage(), Number: p.GetNumber(), Total: p.GetTotal(), Source: p.GetSource(), Line: p.GetLine(),
			Cached: s.GetCached() || fromScratch.MatchString(p.GetSource()), Unknown: s.GetUnknown(), Miss: s.GetMiss(), Why: NewMiss(s.GetWhy()), label: label(p),
		})
	}
	return out
}

// Write prints the forecast for people.
func (f *Forecast) Write(w io.Writer) {
	fmt.Fprintf(w, "context   %s, %s; would send %s\n", plural(f.Files, "file"), Size(f.Bytes), filesOf(f.SendFiles, f.SendBytes))
	fmt.Fprintf(w, "steps     %s\n", f.steps())
	fmt.Fprintf(w, "rootfs    %s\n", f.rootfs())
	switch {
	case f.PushLayers == 0:
		fmt.Fprintf(w, "push      nothing\n")
	case f.PushBytes == 0:
		fmt.Fprintf(w, "push      %s\n", plural(f.PushLayers, "layer"))
	default:
		fmt.Fprintf(w, "push      %s of about %s\n", plural(f.PushLayers, "layer"), Size(f.PushBytes))
	}
	if f.Samples == 0 {
		fmt.Fprintf(w, "time      not known: no build like it yet\n")
		return
	}
	took := time.Duration(f.DurationMS) * time.Millisecond
	about := seconds(took)
	if took < 10*time.Second {
		about = Duration(took)
	}
	fmt.Fprintf(w, "time      about %s (median of the last %s like it)\n", about, Count(f.Samples))
}

func filesOf(files, bytes uint64) string {
	if files == 0 {
		return "nothing"
	}
	return plural(files, "file") + ", " + Size(bytes)
}

// steps counts the steps and names those to run with what the others need not
// be told: the reason of the first.
func (f *Forecast) steps() string {
	cached, unknown := 0, 0
	var run []string
	for i := range f.Steps {
		s := &f.Steps[i]
		text := s.label + " " + clip(s.Source, 60)
		switch {
		case s.Cached:
			cached++
			continue
		case s.Unknown:
			unknown++
			text += " (" + s.Miss + ")"
		case s.Why != nil && s.Why.Reason != "parent" && s.Miss != "":
			text += " (" + clip(s.Miss, 160) + ")"
		}
		run = append(run, text)
	}
	out := fmt.Sprintf("%d cached, %d to run", cached, len(run)-unknown)
	if unknown > 0 {
		out += fmt.Sprintf(", %d that depend on them", unknown)
	}
	if len(run) == 0 {
		return out
	}
	return out + ":\n          " + strings.Join(run, "\n          ")
}

func (f *Forecast) rootfs() string {
	switch {
	case f.RootfsBytes == 0:
		return "not known: no image of this app yet"
	case f.RootfsLimit == 0:
		return Size(f.RootfsBytes)
	}
	used, of := gigabytes(f.RootfsBytes, f.RootfsLimit)
	if f.RootfsKnown {
		return fmt.Sprintf("%s of %s", used, of)
	}
	return fmt.Sprintf("about %s of %s (last deploy)", used, of)
}
