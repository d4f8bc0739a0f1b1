package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
)

// nftReader walks the rules of one foreign table with a probe, as the kernel
// would walk them with a packet, except that a value can be unknown.
type nftReader struct {
	conn   *nftables.Conn
	table  *nftables.Table
	chains []*nftables.Chain
	rules  map[string][]*nftables.Rule
}

// fate is what happens to a probe.
type fate struct {
	drop    bool
	certain bool   // nothing before it could not be judged
	chain   string // where it was dropped
	handle  uint64 // by which rule; 0: by the policy
}

const maxDepth = 32 // of jumps; the kernel's own limit is 16

// judge sends p through a base chain.
func (r *nftReader) judge(base *nftables.Chain, p probe) (fate, error) {
	w := &walk{nftReader: r, probe: p, certain: true}
	done, err := w.chain(base.Name, 0)
	if err != nil {
		return fate{}, err
	}
	if done != nil {
		return *done, nil
	}
	if base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop {
		return fate{drop: true, certain: w.certain, chain: base.Name}, nil
	}
	return fate{}, nil
}

type walk struct {
	*nftReader
	probe   probe
	certain bool
}

// chain walks one chain; nil means that it came to its end.
func (w *walk) chain(name string, depth int) (*fate, error) {
	if depth > maxDepth {
		return nil, nil
	}
	rules, ok := w.rules[name]
	if !ok {
		var err error
		rules, err = w.conn.GetRules(w.table, &nftables.Chain{Name: name, Table: w.table})
		if err != nil {
			return nil, fmt.Errorf("cannot list the rules of nftables table %s, chain %s: %w", w.table.Name, name, err)
		}
		w.rules[name] = rules
	}
	for _, rule := range rules {
		match, v := w.rule(rule)
		if v == nil || match == no {
			continue
		}
		was := w.certain
		if match == maybe {
			w.certain = false
		}
		switch v.Kind {
		case expr.VerdictDrop:
			if match == yes {
				return &fate{drop: true, certain: w.certain, chain: name, handle: rule.Handle}, nil
			}
			w.certain = was // a condition that is not known to hold is no blocker
		case expr.VerdictAccept:
			if match == yes {
				return &fate{}, nil
			}
		case expr.VerdictReturn:
			if match == yes {
				return nil, nil
			}
		case expr.VerdictJump, expr.VerdictGoto:
			w.certain = true
			end, err := w.chain(v.Chain, depth+1)
			if err != nil {
				return nil, err
			}
			inner := w.certain
			w.certain = was && inner
			if match == yes && (end != nil || v.Kind == expr.VerdictGoto) {
				if end != nil {
					end.certain = end.certain && was
				}
				return end, nil
			}
			if match == maybe && ((end != nil && !end.drop) || v.Kind == expr.VerdictGoto) {
				w.certain = false
			}
		}
	}
	return nil, nil
}

// registers are the memory of the kernel's machine, with a mark on each byte that is known.
type registers struct {
	b     [80]byte
	known [80]bool
}

func (r *registers) at(n uint32) int {
	if n >= 8 {
		return int(n-8) * 4
	}
	if n == 0 {
		return len(r.b) // the verdict
	}
	return int(n-1) * 16
}

// set writes v; nil means n unknown bytes.
func (r *registers) set(reg uint32, v []byte, n int) {
	at := r.at(reg)
	for i := range max(n, len(v)) {
		if at+i >= len(r.b) {
			return
		}
		r.known[at+i] = i < len(v)
		if i < len(v) {
			r.b[at+i] = v[i]
		}
	}
}

func (r *registers) get(reg uint32, n int) ([]byte, bool) {
	at := r.at(reg)
	if at+n > len(r.b) || slices.Contains(r.known[at:at+n], false) {
		return nil, false
	}
	return r.b[at : at+n], true
}

// rule runs the expressions of a rule. It returns whether they all match and
// the verdict at the end, nil if there is none that ends anything.
func (w *walk) rule(rule *nftables.Rule) (trit, *expr.Verdict) {
	var regs registers
	match := yes
	for _, e := range rule.Exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if !e.SourceRegister {
				v, n := w.meta(e.Key)
				regs.set(e.Register, v, n)
			}
		case *expr.Payload:
			if e.OperationType == expr.PayloadLoad {
				regs.set(e.DestRegister, w.payload(e), int(e.Len))
			}
		case *expr.Ct:
			if !e.SourceRegister {
				regs.set(e.Register, w.ct(e.Key), 16)
			}
		case *expr.Immediate:
			regs.set(e.Register, e.Data, len(e.Data))
		case *expr.Bitwise:
			v, ok := regs.get(e.SourceRegister, int(e.Len))
			var out []byte
			if ok && len(e.Mask) == len(v) && len(e.Xor) == len(v) {
				for i := range v {
					out = append(out, v[i]&e.Mask[i]^e.Xor[i])
				}
			}
			regs.set(e.DestRegister, out, int(e.Len))
		case *expr.Cmp:
			match = match.and(compare(&regs, e.Register, e.Op, e.Data))
		case *expr.Range:
			in := compare(&regs, e.Register, expr.CmpOpGte, e.FromData).and(compare(&regs, e.Register, expr.CmpOpLte, e.ToData))
			if e.Op == expr.CmpOpNeq {
				in = in.not()
			}
			match = match.and(in)
		case *expr.Lookup:
			found, v := w.lookup(&regs, e)
			match = match.and(found)
			if v != nil && match != no {
				return match, v
			}
			if e.IsDestRegSet && e.DestRegister != 0 {
				regs.set(e.DestRegister, nil, 16)
			}
		case *expr.Match:
			match = match.and(w.xtMatch(e))
		case *expr.Target:
			switch e.Name {
			case "REJECT", "DROP":
				return match, &expr.Verdict{Kind: expr.VerdictDrop}
			}
		case *expr.Reject:
			return match, &expr.Verdict{Kind: expr.VerdictDrop}
		case *expr.Verdict:
			return match, e
		case *expr.Counter, *expr.Log, *expr.Objref, *expr.Quota, *expr.FlowOffload:
		case *expr.Fib:
			regs.set(e.Register, nil, 16)
		case *expr.Rt:
			regs.set(e.Register, nil, 16)
		case *expr.Exthdr:
			regs.set(e.DestRegister, nil, 16)
		default:
			match = match.and(maybe)
		}
		if match == no {
			return no, nil
		}
	}
	return match, nil
}

func compare(regs *registers, reg uint32, op expr.CmpOp, data []byte) trit {
	v, ok := regs.get(reg, len(data))
	if !ok {
		return maybe
	}
	c := bytes.Compare(v, data)
	switch op {
	case expr.CmpOpEq:
		return tritOf(c == 0)
	case expr.CmpOpNeq:
		return tritOf(c != 0)
	case expr.CmpOpLt:
		return tritOf(c < 0)
	case expr.CmpOpLte:
		return tritOf(c <= 0)
	case expr.CmpOpGt:
		return tritOf(c > 0)
	case expr.CmpOpGte:
		return tritOf(c >= 0)
	}
	return maybe
}

// meta gives a property of the probe, or only its length.
func (w *walk) meta(key expr.MetaKey) ([]byte, int) {
	p := w.probe
	switch key {
	case expr.MetaKeyIIFNAME:
		return ifName(p.iif), ifNameSize
	case expr.MetaKeyOIFNAME:
		return ifName(p.oif), ifNameSize
	case expr.MetaKeyNFPROTO:
		return []byte{family(p.src)}, 1
	case expr.MetaKeyL4PROTO:
		return []byte{syscall.IPPROTO_TCP}, 1
	case expr.MetaKeyPROTOCOL:
		ethertype := uint16(0x0800)
		if p.src.Is6() {
			ethertype = 0x86dd
		}
		return binary.BigEndian.AppendUint16(nil, ethertype), 2
	}
	return nil, 16
}

func (w *walk) payload(e *expr.Payload) []byte {
	p := w.probe
	six := p.src.Is6()
	switch e.Base {
	case expr.PayloadBaseNetworkHeader:
		for _, source := range []bool{true, false} {
			off, n := addrField(six, source)
			addr := p.dst
			if source {
				addr = p.src
			}
			if e.Offset >= off && e.Offset+e.Len <= off+n {
				return addr.AsSlice()[e.Offset-off : e.Offset-off+e.Len]
			}
		}
		if e.Len == 1 && ((!six && e.Offset == 9) || (six && e.Offset == 6)) {
			return []byte{syscall.IPPROTO_TCP}
		}
	case expr.PayloadBaseTransportHeader:
		if e.Offset == 2 && e.Len == 2 && p.dport != 0 {
			return binary.BigEndian.AppendUint16(nil, p.dport)
		}
	}
	return nil
}

func (w *walk) ct(key expr.CtKey) []byte {
	switch key {
	case expr.CtKeySTATE:
		if w.probe.established {
			return binaryutil.NativeEndian.PutUint32(ctEstab)
		}
		return binaryutil.NativeEndian.PutUint32(ctNew)
	case expr.CtKeySTATUS:
		if w.probe.translated {
			return binaryutil.NativeEndian.PutUint32(ipsDstNAT | ipsDstNATDone)
		}
		if !w.probe.established {
			return make([]byte, 4)
		}
	}
	return nil
}

// lookup asks a set or a verdict map. Intervals and concatenations are not judged.
func (w *walk) lookup(regs *registers, e *expr.Lookup) (trit, *expr.Verdict) {
	set, err := w.conn.GetSetByName(w.table, e.SetName)
	if err != nil {
		return maybe, nil
	}
	elems, err := w.conn.GetSetElements(set)
	if err != nil || set.Concatenation {
		return maybe, nil
	}
	if len(elems) == 0 {
		return tritOf(e.Invert), nil
	}
	if set.Interval {
		return w.inIntervals(regs, e, elems), nil
	}
	for _, el := range elems {
		switch compare(regs, e.SourceRegister, expr.CmpOpEq, el.Key) {
		case maybe:
			return maybe, nil
		case yes:
			return tritOf(!e.Invert), el.VerdictData
		}
	}
	return tritOf(e.Invert), nil
}

// inIntervals: each element starts an interval or, with IntervalEnd, ends one;
// the greatest that is not above the value decides.
func (w *walk) inIntervals(regs *registers, e *expr.Lookup, elems []nftables.SetElement) trit {
	var best *nftables.SetElement
	for i := range elems {
		if elems[i].VerdictData != nil {
			return maybe
		}
		switch compare(regs, e.SourceRegister, expr.CmpOpGte, elems[i].Key) {
		case maybe:
			return maybe
		case yes:
			if best == nil || bytes.Compare(elems[i].Key, best.Key) > 0 || (bytes.Equal(elems[i].Key, best.Key) && best.IntervalEnd) {
				best = &elems[i]
			}
		}
	}
	return tritOf((best != nil && !best.IntervalEnd) != e.Invert)
}

// Bits of linux/netfilter/xt_conntrack.h.
const (
	xtConntrackState = 1
	xtStateEstab     = 1 << 1
	xtStateNew       = 1 << 3
)

// xtMatch judges the iptables matches that firewalls' forward chains are made of.
func (w *walk) xtMatch(e *expr.Match) trit {
	if e.Name == "comment" {
		return yes
	}
	c, ok := e.Info.(*xt.ConntrackMtinfo3)
	if !ok || c.MatchFlags != xtConntrackState {
		return maybe
	}
	bit := uint16(xtStateNew)
	if w.probe.established {
		bit = xtStateEstab
	}
	in := tritOf(c.StateMask&bit != 0)
	if c.InvertFlags&xtConntrackState != 0 {
		in = in.not()
	}
	return in
}
