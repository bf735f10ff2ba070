//go:build !wasm

package rbdkit

// Host stands in for the server in native tests: a disk in memory, and the buffer of one request.
type Host struct {
	Disk []byte
	// Log has the lines that the filter wrote.
	Log []string
	// Fails is what every operation of the disk answers, unless it is nil.
	Fails   error
	payload []byte
}

var host *Host

// NewHost makes a disk of zeroes, which the filter uses from now on.
func NewHost(size int) *Host {
	host = &Host{Disk: make([]byte, size)}
	return host
}

// Read serves a request with the filter's Pread.
func (h *Host) Read(offset uint64, length uint32, pread func(uint64, uint32, Flags) error) ([]byte, error) {
	h.payload = make([]byte, length)
	err := pread(offset, length, 0)
	return h.payload, err
}

// Write serves a request with the filter's Pwrite.
func (h *Host) Write(offset uint64, data []byte, pwrite func(uint64, uint32, Flags) error) error {
	h.payload = append([]byte(nil), data...)
	return pwrite(offset, uint32(len(data)), 0)
}

func (h *Host) log(line string) {
	if h != nil {
		h.Log = append(h.Log, line)
	}
}

func Error(line string) { host.log("error: " + line) }
func Warn(line string)  { host.log("warning: " + line) }
func Info(line string)  { host.log("info: " + line) }
func Debug(line string) { host.log("debug: " + line) }

// part is a range of a buffer. As in the server, one outside of it ends the call.
func (buffer Buffer) part(at, length uint32) []byte {
	if buffer != Payload {
		panic("the host of the tests has no buffer but the request's own")
	}
	return host.payload[at : uint64(at)+uint64(length)]
}

func (buffer Buffer) Read(at, length uint32) []byte {
	return append([]byte(nil), buffer.part(at, length)...)
}

func (buffer Buffer) Write(at uint32, data []byte) {
	copy(buffer.part(at, uint32(len(data))), data)
}

func (buffer Buffer) Fill(at, length uint32, value byte) {
	part := buffer.part(at, length)
	for i := range part {
		part[i] = value
	}
}

func (buffer Buffer) Xor(at, length uint32, key []byte, skip uint64) {
	part := buffer.part(at, length)
	for i := range part {
		part[i] ^= key[(skip+uint64(i))%uint64(len(key))]
	}
}

func (buffer Buffer) IsZero(at, length uint32) bool {
	for _, value := range buffer.part(at, length) {
		if value != 0 {
			return false
		}
	}
	return true
}

// disk is a range of the disk.
func (layer) disk(offset, length uint64) ([]byte, error) {
	switch size := uint64(len(host.Disk)); {
	case host.Fails != nil:
		return nil, host.Fails
	case offset > size || length > size-offset:
		return nil, EINVAL
	}
	return host.Disk[offset : offset+length], nil
}

func (next layer) Pread(offset uint64, length uint32, to Buffer, at uint32) error {
	part, err := next.disk(offset, uint64(length))
	copy(to.part(at, length), part)
	return err
}

func (next layer) Pwrite(offset uint64, length uint32, from Buffer, at uint32, flags Flags) error {
	part, err := next.disk(offset, uint64(length))
	copy(part, from.part(at, length))
	return err
}

func (layer) Flush() error { return host.Fails }

func (next layer) Trim(offset, length uint64, flags Flags) error {
	return next.Zero(offset, length, flags)
}

func (next layer) Zero(offset, length uint64, flags Flags) error {
	part, err := next.disk(offset, length)
	clear(part)
	return err
}

func (layer) Size() (uint64, error) { return uint64(len(host.Disk)), host.Fails }
