package image

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A document of 4 MiB used to become descriptors of hundreds of them (CWE-789).
func TestDocumentOfManyValuesIsRefusedBeforeItIsDecoded(t *testing.T) {
	raw := []byte(`{"schemaVersion":2,"layers":[{}` + strings.Repeat(",{}", 1_300_000) + `]}`)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var m ocispec.Manifest
	err := decodeJSON(raw, "image manifest", &m)
	runtime.ReadMemStats(&after)
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
	if took := after.TotalAlloc - before.TotalAlloc; took > 1<<20 {
		t.Errorf("%d bytes were allocated", took)
	}
	// A comma in a string is no value.
	if err := checkJSON([]byte(`{"a":"` + strings.Repeat(",", 1_000_000) + `\",,"}`)); err != nil {
		t.Error(err)
	}
}

// An archive's names are kept until its end: 20,000 of a megabyte each, packed
// a thousand to one, would be 20 GB (CWE-770).
func TestArchiveWithLongNamesIsRefused(t *testing.T) {
	s := openTest(t)
	long := strings.Repeat("n/", maxName) + "n"
	for name, h := range map[string]tar.Header{
		"file": {Typeflag: tar.TypeReg, Name: long}, "link": {Typeflag: tar.TypeSymlink, Name: "a", Linkname: long}, "hard link": {Typeflag: tar.TypeLink, Name: "a", Linkname: long},
	} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		_, err := s.Load(context.Background(), &b, nil)
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "name of more than 4096 bytes") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The second stream of a layer that is packed with xz asks for 4 GiB.
func TestImportDoesNotBelieveXZ(t *testing.T) {
	s := openTest(t)
	small := pack(t, xzed, make([]byte, 1024))
	large := bytes.Clone(small)
	i := bytes.Index(large[12:], []byte{0x21, 1}) + 12
	large[i+2] = 40
	end := 12 + (int(large[12])+1)*4 - 4
	binary.LittleEndian.PutUint32(large[end:], crc32.ChecksumIEEE(large[12:end]))
	_, err := s.Import(context.Background(), bytes.NewReader(append(small, large...)), "bomb", nil, "", "")
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("%v", err)
	}
}
