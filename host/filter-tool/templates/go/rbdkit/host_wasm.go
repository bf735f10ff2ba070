//go:build wasm

package rbdkit

import (
	"filters.example/@NAME@/bindings/rbdkit_filter_buffer"
	"filters.example/@NAME@/bindings/rbdkit_filter_log"
	"filters.example/@NAME@/bindings/rbdkit_filter_next"
)

// Error, Warn and Info write a line into the server's log. Debug does so with -v.
func Error(line string) { rbdkit_filter_log.Error(line) }
func Warn(line string)  { rbdkit_filter_log.Warn(line) }
func Info(line string)  { rbdkit_filter_log.Info(line) }
func Debug(line string) { rbdkit_filter_log.Debug(line) }

// Read copies bytes into the filter. Write copies them back.
func (buffer Buffer) Read(at, length uint32) []byte {
	return rbdkit_filter_buffer.Read(uint32(buffer), at, length)
}

func (buffer Buffer) Write(at uint32, data []byte) {
	rbdkit_filter_buffer.Write(uint32(buffer), at, data)
}

// Fill sets every byte of a range.
func (buffer Buffer) Fill(at, length uint32, value byte) {
	rbdkit_filter_buffer.Fill(uint32(buffer), at, length, value)
}

// Xor XORs byte i of a range with the byte of the key at (skip + i) modulo its length.
func (buffer Buffer) Xor(at, length uint32, key []byte, skip uint64) {
	rbdkit_filter_buffer.Xor(uint32(buffer), at, length, key, skip)
}

// IsZero says whether every byte of a range is zero.
func (buffer Buffer) IsZero(at, length uint32) bool {
	return rbdkit_filter_buffer.IsZero(uint32(buffer), at, length)
}

// Pread reads from the layer below into a buffer.
func (layer) Pread(offset uint64, length uint32, to Buffer, at uint32) error {
	return failure(rbdkit_filter_next.Pread(offset, length, uint32(to), at))
}

// Pwrite writes bytes of a buffer to the layer below.
func (layer) Pwrite(offset uint64, length uint32, from Buffer, at uint32, flags Flags) error {
	return failure(rbdkit_filter_next.Pwrite(offset, length, uint32(from), at, flags))
}

// Flush, Trim and Zero are passed to the layer below.
func (layer) Flush() error {
	return failure(rbdkit_filter_next.Flush())
}

func (layer) Trim(offset, length uint64, flags Flags) error {
	return failure(rbdkit_filter_next.Trim(offset, length, flags))
}

func (layer) Zero(offset, length uint64, flags Flags) error {
	return failure(rbdkit_filter_next.Zero(offset, length, flags))
}

// Size is that of the layer below, in bytes.
func (layer) Size() (uint64, error) {
	result := rbdkit_filter_next.GetSize()
	if result.IsErr() {
		return 0, Errno(result.Err())
	}
	return result.Ok(), nil
}
