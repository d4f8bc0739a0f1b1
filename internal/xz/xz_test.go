package xz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"

	other "github.com/ulikunitz/xz"
)

// pack packs with the module that only packs blocks of one dictionary.
func pack(t testing.TB, c other.WriterConfig, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := c.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func sample(n int) []byte {
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(r.IntN(4)) * byte(i>>9)
	}
	return out
}

func unpack(b []byte, most int64) ([]byte, error) {
	z, err := NewReader(bytes.NewReader(b), most)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

func TestUnpacksWhatOthersPack(t *testing.T) {
	data := sample(300_000)
	for name, c := range map[string]other.WriterConfig{
		"one block": {}, "blocks": {BlockSize: 50_000}, "crc32": {CheckSum: other.CRC32}, "sha256": {CheckSum: other.SHA256, BlockSize: 1000}, "no check": {NoCheckSum: true},
	} {
		packed := pack(t, c, data)
		got, err := unpack(packed, 64<<20)
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
		// Several streams with padding are one.
		twice := append(append(append(bytes.Clone(packed), make([]byte, 8)...), packed...), make([]byte, 4)...)
		if got, err := unpack(twice, 64<<20); err != nil || !bytes.Equal(got, append(bytes.Clone(data), data...)) {
			t.Errorf("%s twice: %d bytes, %v", name, len(got), err)
		}
		for _, n := range []int{0, 5, 12, 20, len(packed) / 2, len(packed) - 13, len(packed) - 1} {
			if _, err := unpack(packed[:n], 64<<20); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("%s cut to %d of %d bytes: %v", name, n, len(packed), err)
			}
		}
	}
	if got, err := unpack(pack(t, other.WriterConfig{}, nil), 64<<20); err != nil || len(got) != 0 {
		t.Errorf("an empty file: %d bytes, %v", len(got), err)
	}
}

func TestDamageIsFound(t *testing.T) {
	data := sample(5000)
	packed := pack(t, other.WriterConfig{BlockSize: 2000, DictCap: 4096}, data)
	for i := range packed {
		bad := bytes.Clone(packed)
		bad[i] ^= 0x10
		// A chunk holds bits that nobody needs; all others are found.
		if got, err := unpack(bad, 64<<20); err == nil && !bytes.Equal(got, data) {
			t.Errorf("byte %d of %d is another one: other data and no error", i, len(packed))
		}
	}
	if _, err := unpack(append(bytes.Clone(packed), "more"...), 64<<20); err == nil {
		t.Error("what follows the stream was taken")
	}
}

// wanting changes the size of the dictionary that a block at offset asks for.
func wanting(packed []byte, at int, code byte) []byte {
	out := bytes.Clone(packed)
	end := at + (int(out[at])+1)*4 - 4
	i := at + 2 + bytes.Index(out[at+2:end], []byte{filterXZ, 1})
	out[i+2] = code
	binary.LittleEndian.PutUint32(out[end:], crc32.ChecksumIEEE(out[at:end]))
	return out
}

// The first block's header used to be looked at alone, and the decoder
// allocates what any later one asks for (CWE-789).
func TestNoBlockGetsALargeDictionary(t *testing.T) {
	small := pack(t, other.WriterConfig{}, []byte("x"))
	large := wanting(small, headerLen, 40) // 4 GiB
	for name, b := range map[string][]byte{"first": large, "second stream": append(bytes.Clone(small), large...)} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := unpack(b, 128<<20)
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrDictionary) {
			t.Errorf("%s: %v", name, err)
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
			t.Errorf("%s: %d bytes were allocated", name, took)
		}
	}
	if got, err := unpack(wanting(small, headerLen, 30), 128<<20); err != nil || string(got) != "x" {
		t.Errorf("a dictionary of what is allowed: %q %v", got, err)
	}
}

func FuzzReader(f *testing.F) {
	for _, c := range []other.WriterConfig{{DictCap: 4096}, {DictCap: 4096, BlockSize: 100}, {DictCap: 4096, NoCheckSum: true}, {DictCap: 4096, CheckSum: other.SHA256}} {
		f.Add(pack(f, c, sample(400)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		z, err := NewReader(bytes.NewReader(b), 1<<20)
		if err != nil {
			return
		}
		var got bytes.Buffer
		n, err := io.Copy(&got, io.LimitReader(z, 4<<20))
		if err != nil || n == 4<<20 {
			return
		}
		// What we take, the other reads alike.
		o, err := other.NewReader(bytes.NewReader(b))
		if err != nil {
			t.Fatalf("%d bytes were taken that the other reader refuses: %v", n, err)
		}
		theirs, err := io.ReadAll(o)
		if err != nil || !bytes.Equal(theirs, got.Bytes()) {
			t.Fatalf("%d bytes here, %d there: %v", n, len(theirs), err)
		}
	})
}
