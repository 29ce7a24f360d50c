package sandbox

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
)

// idlePath is where a container finds the program that does nothing. It is in
// /dev, which is in memory: no root file system gets it.
const idlePath = "/dev/.idle"

// Where the program is loaded, and what of the memory there is not its code.
const (
	idleAddress = 0x10000
	idleHeaders = 64 + 56 // of the file, and of its one segment
)

// idleCode are the programs, by machine. Each has the kernel reap the children
// that it is going to inherit, by ignoring SIGCHLD, and sleeps. What follows the
// code is the struct sigaction for that: the handler SIG_IGN and no more.
var idleCode = map[string]struct {
	machine elf.Machine
	code    []byte
}{
	"amd64": {elf.EM_X86_64, []byte{
		0xbf, 17, 0, 0, 0, //                   mov  edi, SIGCHLD
		0x48, 0x8d, 0x35, 0x18, 0, 0, 0, //     lea  rsi, [rip+24]: the struct
		0x31, 0xd2, //                          xor  edx, edx
		0x41, 0xba, 8, 0, 0, 0, //              mov  r10d, 8
		0xb8, 13, 0, 0, 0, //                   mov  eax, rt_sigaction
		0x0f, 0x05, //                          syscall
		0xb8, 34, 0, 0, 0, //                   mov  eax, pause
		0x0f, 0x05, //                          syscall
		0xeb, 0xf7, //                          jmp  to pause
	}},
	"arm64": {elf.EM_AARCH64, []byte{
		0x20, 0x02, 0x80, 0xd2, // mov x0, SIGCHLD
		0x81, 0x01, 0x00, 0x10, // adr x1, the struct
		0x02, 0x00, 0x80, 0xd2, // mov x2, 0
		0x03, 0x01, 0x80, 0xd2, // mov x3, 8
		0xc8, 0x10, 0x80, 0xd2, // mov x8, rt_sigaction
		0x01, 0x00, 0x00, 0xd4, // svc 0
		0x00, 0x00, 0x80, 0xd2, // mov x0, 0
		0x01, 0x00, 0x80, 0xd2, // mov x1, 0
		0x02, 0x00, 0x80, 0xd2, // mov x2, 0
		0x03, 0x00, 0x80, 0xd2, // mov x3, 0
		0x28, 0x09, 0x80, 0xd2, // mov x8, ppoll
		0x01, 0x00, 0x00, 0xd4, // svc 0
		0xfa, 0xff, 0xff, 0x17, // b   to the first of the five before it
	}},
}

// idleProgram returns an executable that does nothing until it is killed, for
// any Linux of this machine's kind: it uses no library and no file.
func idleProgram() ([]byte, error) {
	p, ok := idleCode[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no idle process for %s: %w", runtime.GOARCH, errors.ErrUnsupported)
	}
	body := append(bytes.Clone(p.code), make([]byte, 32)...)
	body[len(p.code)] = 1 // SIG_IGN
	size := uint64(idleHeaders + len(body))
	var b bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
			Type:  uint16(elf.ET_EXEC), Machine: uint16(p.machine), Version: uint32(elf.EV_CURRENT),
			Entry: idleAddress + idleHeaders, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: idleAddress, Paddr: idleAddress,
			Filesz: size, Memsz: size, Align: 0x1000,
		},
		body,
	} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// idle makes p one that does nothing.
func (p *Process) idle() error {
	program, err := idleProgram()
	if err != nil {
		return err
	}
	p.Args = []string{idlePath}
	p.Mounts = append(p.Mounts[:len(p.Mounts):len(p.Mounts)], Mount{Target: idlePath, Data: program, Mode: 0o555, ReadOnly: true})
	return nil
}
