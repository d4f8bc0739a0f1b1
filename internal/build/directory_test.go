package build

import (
	"io"
	"testing"

	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil/types"
)

// script is a client that says what it is given.
type script struct {
	filesync.FileSync_DiffCopyClient
	packets []*types.Packet
}

func (s *script) RecvMsg(m any) error {
	if len(s.packets) == 0 {
		return io.EOF
	}
	p := s.packets[0]
	s.packets = s.packets[1:]
	to := m.(*types.Packet)
	to.Type, to.ID, to.Stat, to.Data = p.Type, p.ID, p.Stat, p.Data
	return nil
}

// A transfer is whole if the walk ended and each file that was sent had the
// bytes that it was said to have.
func TestHeard(t *testing.T) {
	file := func(size int64) *types.Packet {
		return &types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "f", Size: size}}
	}
	data := func(id uint32, text string) *types.Packet {
		return &types.Packet{Type: types.PACKET_DATA, ID: id, Data: []byte(text)}
	}
	end := &types.Packet{Type: types.PACKET_STAT}
	for name, c := range map[string]struct {
		packets []*types.Packet
		whole   bool
	}{
		"nothing":                       {nil, false},
		"an empty directory":            {[]*types.Packet{end}, true},
		"no end":                        {[]*types.Packet{file(1), data(0, "a"), data(0, "")}, false},
		"a file that is there":          {[]*types.Packet{file(5), end}, true},
		"a file":                        {[]*types.Packet{file(2), file(3), end, data(1, "ab"), data(0, "a"), data(1, "c"), data(0, "b"), data(1, ""), data(0, "")}, true},
		"an empty file":                 {[]*types.Packet{file(0), data(0, ""), end}, true},
		"one that cannot be read":       {[]*types.Packet{file(5), end, data(0, "")}, false},
		"before the end":                {[]*types.Packet{file(5), data(0, ""), end}, false},
		"one that has become shorter":   {[]*types.Packet{file(5), end, data(0, "abc"), data(0, "")}, false},
		"one that has become longer":    {[]*types.Packet{file(2), end, data(0, "abc"), data(0, "")}, false},
		"a file that was not spoken of": {[]*types.Packet{end, data(7, "abc"), data(7, "")}, true},
		"a file of less than no bytes":  {[]*types.Packet{file(-1), end, data(0, "")}, false},
	} {
		h := &heard{FileSync_DiffCopyClient: &script{packets: c.packets}}
		for {
			var p types.Packet
			if err := h.RecvMsg(&p); err == io.EOF {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if h.whole() != c.whole {
			t.Errorf("%s: whole %v", name, h.whole())
		}
	}
}
