package seccomp

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/containerd/errdefs"
	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Operations of classic BPF (linux/bpf_common.h, linux/filter.h).
const (
	ldAbs = 0x20 // A = word at k of struct seccomp_data
	andK  = 0x54 // A &= k
	ja    = 0x05 // skip k
	jeqK  = 0x15 // A == k ? skip jt : skip jf
	jgtK  = 0x25
	jgeK  = 0x35
	retK  = 0x06
)

// Offsets in struct seccomp_data; arguments are 64 bits, low word first on the
// little endian machines that there are tables for.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

// maxProgram is BPF_MAXINSNS.
const maxProgram = 4096

// insn is one instruction.
type insn struct {
	op     uint16
	jt, jf uint8
	k      uint32
}

// builder builds a program from its end to its beginning: classic BPF jumps
// only forward, so every target exists before the jump to it. A label is the
// number of instructions from its target to the end.
type builder struct {
	rev  []insn         // last instruction first
	rets map[uint32]int // newest label of a return
}

func (b *builder) push(i insn) int {
	b.rev = append(b.rev, i)
	return len(b.rev)
}

// ret gives a label that returns an action, near enough to be jumped to.
func (b *builder) ret(action uint32) int {
	if l, ok := b.rets[action]; ok && len(b.rev)-l < 200 {
		return l
	}
	l := b.push(insn{op: retK, k: action})
	b.rets[action] = l
	return l
}

// jump adds a conditional jump. A target beyond the reach of 8 bits is reached
// by a long jump in between.
func (b *builder) jump(op uint16, k uint32, yes, no int) int {
	for range 2 {
		// The second trampoline shifts the first's distance by one.
		if len(b.rev)-yes > 254 {
			yes = b.push(insn{op: ja, k: uint32(len(b.rev) - yes)})
		}
		if len(b.rev)-no > 254 {
			no = b.push(insn{op: ja, k: uint32(len(b.rev) - no)})
		}
	}
	return b.push(insn{op: op, jt: uint8(len(b.rev) - yes), jf: uint8(len(b.rev) - no), k: k})
}

// at makes a label the next instruction, by a jump if it is not.
func (b *builder) at(label int) int {
	if label == len(b.rev) {
		return label
	}
	return b.push(insn{op: ja, k: uint32(len(b.rev) - label)})
}

// load puts a load before a label.
func (b *builder) load(offset uint32, label int) int {
	b.at(label)
	return b.push(insn{op: ldAbs, k: offset})
}

// span is a range of numbers, up to the next span, that one thing happens to.
type span struct {
	from   uint32
	action uint32
	rules  []rule // nil: action; else these, then action
}

func compile(p *profiles.Seccomp, caps uint64, h host) ([]byte, error) {
	archs, err := policies(p, caps, h)
	if err != nil {
		return nil, err
	}
	b := &builder{rets: map[uint32]int{}}
	next := b.ret(retKillThread) // an architecture without rules
	for _, a := range slices.Backward(archs) {
		search := b.load(offNumber, b.search(a.spans()))
		next = b.jump(jeqK, a.audit, search, next)
	}
	b.load(offArch, next)
	if len(b.rev) > maxProgram {
		return nil, fmt.Errorf("cannot use the seccomp profile: it makes %d instructions, the kernel takes %d: %w", len(b.rev), maxProgram, errdefs.ErrInvalidArgument)
	}
	out := make([]byte, 0, 8*len(b.rev))
	for _, i := range slices.Backward(b.rev) {
		out = binary.LittleEndian.AppendUint16(out, i.op)
		out = append(out, i.jt, i.jf)
		out = binary.LittleEndian.AppendUint32(out, i.k)
	}
	return out, nil
}

// spans lays the policy out as ranges, as few as there can be.
func (p *policy) spans() []span {
	edges := []uint32{0, uint32(p.newest + 1), armPrivate, armPrivate + armPrivates, x32Bit}
	for nr := range p.rules {
		edges = append(edges, uint32(nr), uint32(nr+1))
	}
	slices.Sort(edges)
	var out []span
	for _, nr := range slices.Compact(edges) {
		s := p.decide(nr)
		if n := len(out); n > 0 && out[n-1].rules == nil && s.rules == nil && out[n-1].action == s.action {
			continue
		}
		out = append(out, s)
	}
	return out
}

// decide says what happens to one number, and to those after it up to the next edge.
func (p *policy) decide(nr uint32) span {
	s := span{from: nr, action: p.fallback}
	switch rules := p.rules[int(nr)]; {
	case p.x32 && nr >= x32Bit:
		s.action = retErrno | enosys
	case rules != nil && rules[0].conds == nil:
		s.action = rules[0].action
	case rules != nil:
		s.rules = rules
	case p.private && nr >= armPrivate && nr < armPrivate+armPrivates:
	case p.enosys && nr > uint32(p.newest):
		s.action = retErrno | enosys
	}
	return s
}

// search builds a balanced search for the span that the number in A lies in.
func (b *builder) search(spans []span) int {
	if len(spans) == 1 {
		return b.leaf(spans[0])
	}
	mid := len(spans) / 2
	high := b.search(spans[mid:])
	low := b.search(spans[:mid])
	return b.jump(jgeK, spans[mid].from, high, low)
}

// leaf builds what happens to one span.
func (b *builder) leaf(s span) int {
	if s.rules == nil {
		return b.ret(s.action)
	}
	next := b.ret(s.action)
	for _, r := range slices.Backward(s.rules) {
		yes := b.ret(r.action)
		for _, c := range slices.Backward(r.conds) {
			yes = b.condition(c, yes, next)
		}
		next = yes
	}
	return next
}

// condition builds one comparison of a 64-bit argument, in two words.
func (b *builder) condition(c specs.LinuxSeccompArg, yes, no int) int {
	low := uint32(offArgs + 8*c.Index)
	high := low + 4
	vLow, vHigh := uint32(c.Value), uint32(c.Value>>32)
	switch c.Op {
	case specs.OpNotEqual:
		return b.equal(low, high, vLow, vHigh, no, yes)
	case specs.OpEqualTo:
		return b.equal(low, high, vLow, vHigh, yes, no)
	case specs.OpMaskedEqual: // Value is the mask
		return b.masked(low, high, c.Value, c.ValueTwo, yes, no)
	case specs.OpGreaterThan:
		return b.greater(jgtK, low, high, vLow, vHigh, yes, no)
	case specs.OpGreaterEqual:
		return b.greater(jgeK, low, high, vLow, vHigh, yes, no)
	case specs.OpLessEqual:
		return b.greater(jgtK, low, high, vLow, vHigh, no, yes)
	default: // specs.OpLessThan; policies refuses what is not known
		return b.greater(jgeK, low, high, vLow, vHigh, no, yes)
	}
}

func (b *builder) equal(low, high, vLow, vHigh uint32, yes, no int) int {
	l := b.load(low, b.jump(jeqK, vLow, yes, no))
	return b.load(high, b.jump(jeqK, vHigh, l, no))
}

// greater compares words: the high ones decide unless they are equal.
func (b *builder) greater(op uint16, low, high, vLow, vHigh uint32, yes, no int) int {
	l := b.load(low, b.jump(op, vLow, yes, no))
	same := b.jump(jeqK, vHigh, l, no)
	if vHigh == math.MaxUint32 { // no word is greater
		return b.load(high, same)
	}
	return b.load(high, b.jump(jgtK, vHigh, yes, same))
}

// masked compares (argument & mask) with a value; a word that the mask leaves
// out is not looked at.
func (b *builder) masked(low, high uint32, mask, value uint64, yes, no int) int {
	if value&^mask != 0 {
		return no // can never be equal
	}
	word := func(off, m, v uint32, yes int) int {
		if m == 0 {
			return yes
		}
		t := b.jump(jeqK, v, yes, no)
		if m != math.MaxUint32 {
			b.at(t)
			t = b.push(insn{op: andK, k: m})
		}
		return b.load(off, t)
	}
	l := word(low, uint32(mask), uint32(value), yes)
	return word(high, uint32(mask>>32), uint32(value>>32), l)
}
