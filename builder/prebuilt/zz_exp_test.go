package prebuilt_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func expTar(seed byte, n int) []byte {
	r := rand.NewChaCha8([32]byte{seed})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 3+i%9)
		r.Read(words[i])
	}
	for i := range n / 50000 {
		data := make([]byte, 0, 50000)
		for len(data) < 49980 {
			data = append(data, words[r.Uint64()%4096]...)
		}
		data = data[:49980]
		w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d%d-%d/f%d", seed, i%40, i), Mode: 0o644, Size: int64(len(data))})
		w.Write(data)
	}
	w.Close()
	return b.Bytes()
}

func cpu() float64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return float64(u.Utime.Sec+u.Stime.Sec) + float64(u.Utime.Usec+u.Stime.Usec)/1e6
}

func TestZZExp(t *testing.T) {
	if os.Getenv("EXP") == "" {
		t.Skip()
	}
	src, d := newHub(t), newDaemon(t, 0)
	var ls []blob
	for i := range 6 {
		ls = append(ls, gzipped(t, expTar(byte(i), 60e6)))
	}
	t.Log(len(ls[0].raw))
	src.image("team/shop", "amd64", "v1", ls...)
	for i := range 4 {
		d = newDaemon(t, 0)
		b, c := time.Now(), cpu()
		d.deploy(fmt.Sprint("shop", i), src.ref("team/shop:v1"))
		fmt.Printf("wall %.2f cpu %.2f\n", time.Since(b).Seconds(), cpu()-c)
	}
}
