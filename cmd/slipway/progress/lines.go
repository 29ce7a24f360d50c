package progress

import (
	"bytes"
	"regexp"
	"strings"
)

// maxLine bounds a line of output that is held until it ends.
const maxLine = 64 << 10

// splitter makes lines of the pieces in which output arrives.
type splitter struct{ rest []byte }

// add returns the lines that data completes.
func (s *splitter) add(data []byte) []string {
	s.rest = append(s.rest, data...)
	var lines []string
	for {
		i := bytes.IndexByte(s.rest, '\n')
		next := i + 1
		if i < 0 || i > maxLine {
			if len(s.rest) <= maxLine {
				return lines
			}
			i, next = maxLine, maxLine
		}
		lines = append(lines, clean(s.rest[:i]))
		s.rest = s.rest[next:]
	}
}

// flush returns what is left without a newline.
func (s *splitter) flush() []string {
	if len(s.rest) == 0 {
		return nil
	}
	line := clean(s.rest)
	s.rest = nil
	return []string{line}
}

// escapes are sequences by which output colours text, moves the cursor or sets
// the title of a terminal.
var escapes = regexp.MustCompile(`\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_=>78])`)

// clean returns a line as a log can hold it: what a carriage return overwrote
// is gone, and so is everything that would steer a terminal.
func clean(line []byte) string {
	line = bytes.TrimRight(line, "\r")
	if i := bytes.LastIndexByte(line, '\r'); i >= 0 {
		line = line[i+1:]
	}
	s := strings.ToValidUTF8(string(escapes.ReplaceAll(line, nil)), "�")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\t' || r >= 0x7f && r < 0xa0 {
			return -1
		}
		return r
	}, s)
}
