// Package rbdkit is what a filter uses: its description, parameters, errors, the request's bytes, the layer below, and
// the log. It is yours to change. What is not here is in the packages of bindings/, which are made from the contract.
package rbdkit

import (
	"errors"
	"strconv"

	witTypes "go.bytecodealliance.org/pkg/wit/types"

	types "filters.example/@NAME@/bindings/rbdkit_filter_types"
)

// Errno is an error of the contract. The client receives the closest one that the NBD protocol has.
type Errno types.Errno

// The errors of the contract.
const (
	EPERM     = Errno(types.ErrnoEperm)
	ENOENT    = Errno(types.ErrnoEnoent)
	EIO       = Errno(types.ErrnoEio)
	ENOMEM    = Errno(types.ErrnoEnomem)
	EINVAL    = Errno(types.ErrnoEinval)
	ENOSPC    = Errno(types.ErrnoEnospc)
	EROFS     = Errno(types.ErrnoErofs)
	ENOTSUP   = Errno(types.ErrnoEnotsup)
	EOVERFLOW = Errno(types.ErrnoEoverflow)
	ESHUTDOWN = Errno(types.ErrnoEshutdown)
	ETIMEDOUT = Errno(types.ErrnoEtimedout)
	EDEADLK   = Errno(types.ErrnoEdeadlk)
	ENXIO     = Errno(types.ErrnoEnxio)
)

var names = [...]string{
	"not permitted", "no such export or file", "input/output error", "out of memory", "invalid request", "no space left",
	"read-only", "not supported", "request too long", "shutting down", "deadline passed", "a second lock",
	"not available",
}

func (errno Errno) Error() string {
	if int(errno) < len(names) {
		return names[errno]
	}
	return "errno " + strconv.Itoa(int(errno))
}

// ErrnoOf is what the client receives for an error: the Errno in it, or EIO. The text of an error without an Errno goes
// into the log.
func ErrnoOf(err error) types.Errno {
	var errno Errno
	if errors.As(err, &errno) {
		return types.Errno(errno)
	}
	Error(err.Error())
	return types.Errno(EIO)
}

// failure makes Go's error from a result of the host.
func failure[T any](result witTypes.Result[T, types.Errno]) error {
	if result.IsErr() {
		return Errno(result.Err())
	}
	return nil
}

// Flags are those of a request.
type Flags = types.CommandFlags

// The flags of a request.
const (
	FUA      Flags = types.CommandFlagsFua
	MayTrim  Flags = types.CommandFlagsMayTrim
	FastZero Flags = types.CommandFlagsFastZero
	ReqOne   Flags = types.CommandFlagsReqOne
)

// ThreadModel says how many calls run at once.
type ThreadModel uint8

// The thread models. Parallel is the default.
const (
	Parallel ThreadModel = iota
	SerializeRequests
	SerializeAllRequests
	SerializeConnections
)

// Description says what a filter is: a parallel, opaque and stateless one unless the fields say otherwise.
type Description struct {
	Name, Version, Longname, Help string
	Params                        []Param
	ThreadModel                   ThreadModel
	// Transparent: operations that the filter does not export pass it by.
	Transparent bool
	Recovery    types.Recovery
	// StateVersion changes with the meaning of maps, slots or scratch. 0 stands for 1.
	StateVersion uint32
}

// Param is a parameter. An empty Default is none.
type Param struct {
	Name, Kind, Default, Help string
	Aliases, Choices          []string
	Required, Repeat, PassOn  bool
}

// Contract is the description as the host takes it.
func (d Description) Contract() types.Description {
	models := [...]types.ThreadModel{
		types.ThreadModelParallel, types.ThreadModelSerializeRequests, types.ThreadModelSerializeAllRequests,
		types.ThreadModelSerializeConnections,
	}
	about := types.Description{
		Name: d.Name, Version: d.Version, Longname: d.Longname, Help: d.Help,
		ThreadModel: models[d.ThreadModel], Unexported: types.UnexportedOpaque, Recovery: d.Recovery,
		StateVersion: max(d.StateVersion, 1),
	}
	if d.Transparent {
		about.Unexported = types.UnexportedTransparent
	}
	for _, p := range d.Params {
		param := types.Param{
			Name: p.Name, Aliases: p.Aliases, Kind: p.Kind, Choices: p.Choices, Default: witTypes.None[string](),
			Required: p.Required, Repeat: p.Repeat, PassOn: p.PassOn, Help: p.Help,
		}
		if p.Default != "" {
			param.Default = witTypes.Some(p.Default)
		}
		about.Params = append(about.Params, param)
	}
	return about
}

// Params are the parameters that were given.
type Params []witTypes.Tuple2[string, string]

// NewParams makes parameters for a test, of names and values in turn.
func NewParams(pairs ...string) (params Params) {
	for i := 0; i+1 < len(pairs); i += 2 {
		params = append(params, witTypes.Tuple2[string, string]{F0: pairs[i], F1: pairs[i+1]})
	}
	return params
}

// Text is the value of a parameter, the last one of several, and whether it was given.
func (params Params) Text(name string) (value string, given bool) {
	for _, param := range params {
		if param.F0 == name {
			value, given = param.F1, true
		}
	}
	return value, given
}

// Number is a parameter of a kind that is a number (int, size, duration, percent, probability), or otherwise if it was
// not given. More than greatest is an error.
func (params Params) Number(name string, otherwise, greatest uint64) (uint64, error) {
	text, given := params.Text(name)
	if !given {
		return otherwise, nil
	}
	number, err := strconv.ParseUint(text, 10, 64)
	if err != nil || number > greatest {
		return otherwise, params.Refuse(name, "is not from 0 to "+strconv.FormatUint(greatest, 10))
	}
	return number, nil
}

// Refuse is the error for a wrong value: name=value: why.
func (params Params) Refuse(name, why string) error {
	text, _ := params.Text(name)
	return errors.New(name + "=" + text + ": " + why)
}

// Buffer is a buffer of the request. Its bytes stay in the host.
type Buffer uint32

// Payload is the request's own buffer: a read fills it, and for a write it holds what the client wrote.
const Payload Buffer = 0

// Modify calls change with one piece of a range after another, and puts each back. Each piece is copied into the
// filter's memory, so what the host can do is cheaper there.
func (buffer Buffer) Modify(at, length uint32, change func(piece []byte, at uint32)) {
	const most = 64 << 10
	for length > 0 {
		now := min(length, most)
		piece := buffer.Read(at, now)
		change(piece, at)
		buffer.Write(at, piece)
		at, length = at+now, length-now
	}
}

type layer struct{}

// Next is the layer below.
var Next layer
