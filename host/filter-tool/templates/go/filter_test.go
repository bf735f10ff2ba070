package filter

import (
	"bytes"
	"testing"

	"filters.example/@NAME@/rbdkit"
)

// go test runs the operations natively, over a disk in memory (rbdkit/host_native.go).
func TestWhatWasWrittenIsReadAgain(t *testing.T) {
	host := rbdkit.NewHost(1 << 20)
	if err := Configure(rbdkit.NewParams("key", "7")); err != nil {
		t.Fatal(err)
	}
	data := []byte("Hello")
	if err := host.Write(100, data, Pwrite); err != nil {
		t.Fatal(err)
	}
	if below := host.Disk[100:105]; !bytes.Equal(below, []byte{'H' ^ 7, 'e' ^ 7, 'l' ^ 7, 'l' ^ 7, 'o' ^ 7}) {
		t.Errorf("on the disk below: %q", below)
	}
	read, err := host.Read(100, 5, Pread)
	if err != nil || !bytes.Equal(read, data) {
		t.Errorf("read %q, %v", read, err)
	}
}

func TestAKeyThatIsTooLargeIsRefused(t *testing.T) {
	err := Configure(rbdkit.NewParams("key", "256"))
	if err == nil || err.Error() != "key=256: is not from 0 to 255" {
		t.Error(err)
	}
}
