package network

import (
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// The words of which the rules in table.go are made: each is one condition or
// one end of a rule, in the form that the kernel's little machine wants.

var (
	family4 = []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, equal([]byte{syscall.AF_INET})}
	family6 = []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1}, equal([]byte{syscall.AF_INET6})}
)

func equal(b []byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: b} }

func iifIs(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1}, equal(ifName(name))}
}

func oifIs(name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1}, equal(ifName(name))}
}

func oifIsNot(name string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: ifName(name)},
	}
}

func iifIn(s *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: reg1},
		&expr.Lookup{SourceRegister: reg1, SetName: s.Name, SetID: s.ID},
	}
}

// addrField is where an address stands in the IP header.
func addrField(six, source bool) (offset, length uint32) {
	switch {
	case six && source:
		return 8, 16
	case six:
		return 24, 16
	case source:
		return 12, 4
	}
	return 16, 4
}

func addrCmp(p netip.Prefix, source bool, op expr.CmpOp) []expr.Any {
	off, n := addrField(p.Addr().Is6(), source)
	out := []expr.Any{&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: n}}
	if p.Bits() < p.Addr().BitLen() {
		mask := make([]byte, n)
		for i := range p.Bits() {
			mask[i/8] |= 0x80 >> (i % 8)
		}
		out = append(out, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: n, Mask: mask, Xor: make([]byte, n)})
	}
	return append(out, &expr.Cmp{Op: op, Register: reg1, Data: p.Masked().Addr().AsSlice()})
}

func saddrIn(p netip.Prefix) []expr.Any    { return addrCmp(p, true, expr.CmpOpEq) }
func saddrNotIn(p netip.Prefix) []expr.Any { return addrCmp(p, true, expr.CmpOpNeq) }
func daddrIn(p netip.Prefix) []expr.Any    { return addrCmp(p, false, expr.CmpOpEq) }

// daddrNotLocal: fib daddr type != local
func daddrNotLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(rtnLocal)},
	}
}

func protoPort(proto byte, port uint16) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg1}, equal([]byte{proto}),
		&expr.Payload{DestRegister: reg1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, equal(binaryutil.BigEndian.PutUint16(port)),
	}
}

// ctBits is true where the conntrack field has one of the bits.
func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg1},
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: make([]byte, 4)},
	}
}

func ctStateIn(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, bits) }

// translated: ct status dnat
func translated() []expr.Any { return ctBits(expr.CtKeySTATUS, ipsDstNAT) }

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }
