package fleet

// ParseBatch exposes the parser of log messages to a fuzz test.
func ParseBatch(msg []byte) (entries []Entry, end bool, err error) {
	b, err := parseBatch(msg)
	if err != nil {
		return nil, false, err
	}
	err = b.entries(func(en Entry) bool { entries = append(entries, en); return true })
	return entries, b.end, err
}

// FormatBatch is the inverse of ParseBatch.
func FormatBatch(first uint64, end bool, payloads ...[]byte) []byte {
	msg := newBatch(nil)
	for _, p := range payloads {
		msg = appendEntry(msg, p)
	}
	seal(msg, first, uint32(len(payloads)), end)
	return msg
}

// Token exposes token.
func Token(name string) string { return token(name) }

// A Board exposes what an engine knows of its queue. States are those of records.
type Board struct{ b *board }

func NewBoard() Board { return Board{newBoard("me", false)} }

func (b Board) Expect(id string)                        { b.b.expect(id, "org", 1) }
func (b Board) Update(id, st, owner string, rev uint64) { b.b.update(id, boardRecord(st, owner), rev) }
func (b Board) Observe(id, st, owner string, rev uint64) {
	b.b.observe(id, boardRecord(st, owner), rev)
}
func (b Board) State(id string) string { st, _, _ := b.b.place(id); return string(st) }

func boardRecord(st, owner string) record {
	return record{Org: "org", Seq: 1, State: state(st), Owner: owner}
}
