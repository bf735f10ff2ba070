// Package filter is @NAME@: it XORs every byte with a number, in both directions.
//
// The exported functions are the operations of wit/deps/rbdkit-filter/filter.wit, with Go's errors in place of results.
// Package rbdkit has what they use. A panic fails the request, and its text goes into the server's log, as do lines on
// standard error. There are no files, no network and no environment.
package filter

import "filters.example/@NAME@/rbdkit"

var key byte = 255

// Describe says what the filter is.
func Describe() rbdkit.Description {
	return rbdkit.Description{
		Name:     "@NAME@",
		Version:  "0.1.0",
		Longname: "exclusive-or with a number",
		Help:     "Changes every byte on its way in and out.",
		Params:   []rbdkit.Param{{Name: "key", Kind: "int", Default: "255", Help: "The number, 0 to 255."}},
	}
}

// Configure takes the parameters.
func Configure(params rbdkit.Params) error {
	number, err := params.Number("key", uint64(key), 255)
	key = byte(number)
	return err
}

// Pread reads. The layer below fills the request's buffer, which stays in the host.
func Pread(offset uint64, length uint32, flags rbdkit.Flags) error {
	if err := rbdkit.Next.Pread(offset, length, rbdkit.Payload, 0); err != nil {
		return err
	}
	rbdkit.Payload.Xor(0, length, []byte{key}, 0)
	return nil
}

// Pwrite writes.
func Pwrite(offset uint64, length uint32, flags rbdkit.Flags) error {
	rbdkit.Payload.Xor(0, length, []byte{key}, 0)
	return rbdkit.Next.Pwrite(offset, length, rbdkit.Payload, 0, flags)
}
