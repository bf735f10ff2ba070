package runtime

import (
	"runtime"
	"unsafe"
)

// Keeper keeps what an import reads or writes alive and in its place until the import has returned. A Pinner of Go
// does so too, and costs several times what the import does: it marks each object in the heap's spans. That is for
// memory that the other side uses after the call. Go's collector never moves an object of the heap, so it is enough
// that the objects are in the heap and that a variable refers to them.
//
// rbdkit-filter adds it to the package: it is not part of go.bytecodealliance.org/pkg.
type Keeper struct {
	kept  [4]unsafe.Pointer
	more  []unsafe.Pointer
	count int
}

// The compiler puts into the heap what this variable may refer to. A goroutine's stack can move during an import.
var (
	never   bool
	escaped unsafe.Pointer
)

// Pin keeps an object until Unpin.
func (keeper *Keeper) Pin(pointer unsafe.Pointer) {
	if never {
		escaped = pointer
	}
	if keeper.count < len(keeper.kept) {
		keeper.kept[keeper.count] = pointer
	} else {
		keeper.more = append(keeper.more, pointer)
	}
	keeper.count++
}

// Unpin is deferred, so that the objects are kept until the function that pinned them returns.
func (keeper *Keeper) Unpin() {
	runtime.KeepAlive(keeper)
}

// Allocate makes an object and keeps it.
func (keeper *Keeper) Allocate(size, align uintptr) unsafe.Pointer {
	pointer := allocateRaw(size, align)
	keeper.Pin(pointer)
	return pointer
}
