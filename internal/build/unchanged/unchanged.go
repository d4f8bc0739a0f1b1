// Package unchanged is how a builder and a client find out that a directory is
// as it was, without a word about each of its files. It owns the words that
// both say beside BuildKit's transfer of files (moby.filesync.v1.FileSync,
// DiffCopy), and the sum of a directory; it never touches files.
//
//	builder                                      client
//	  | DiffCopy, with known: a, b                  |
//	  |-------------------------------------------->| walks, sums
//	  |                          header same: b     |
//	  |<--------------------------------------------|
//	  | FIN                                         |
//	  |-------------------------------------------->|
//	  |                                  FIN, end   |
//	  |<--------------------------------------------|
//
// Where nothing fits, the header comes without same, and the transfer goes on
// as ever; behind it the client says in a trailer what the files amounted to.
// One that does not know these words, as Docker's, leaves header and trailer
// out, and is then never told that anything is known.
package unchanged

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Names of gRPC metadata.
const (
	known = "proa-known" // request: sums of what the builder has; one value each
	same  = "proa-same"  // response header: the one that the directory has now
	files = "proa-files" // trailer: the sum of what was transferred
)

// Most is how many sums a builder names at most.
const Most = 8

// Sum adds up what a walk tells of files, in its order: everything that
// BuildKit compares (path, type, mode, owner, size, time in ns, target of a
// link, device) and the extended attributes. Two walks with the same sum are
// taken for the same files with the same content, as a transfer takes a file
// of the same size and time.
type Sum struct {
	h   hash.Hash
	buf []byte
}

// Add adds one file.
func (s *Sum) Add(st *types.Stat) error {
	if s.h == nil {
		s.h = sha256.New()
	}
	var err error
	s.buf, err = proto.MarshalOptions{Deterministic: true}.MarshalAppend(append(s.buf[:0], 0, 0, 0, 0), st)
	if err != nil {
		return fmt.Errorf("cannot add up the files of a directory: %w", err)
	}
	binary.BigEndian.PutUint32(s.buf, uint32(len(s.buf)-4)) // an entry has no more than some paths and attributes
	s.h.Write(s.buf)
	return nil
}

// String is the sum, in hexadecimal digits.
func (s *Sum) String() string {
	if s.h == nil {
		s.h = sha256.New()
	}
	return hex.EncodeToString(s.h.Sum(nil))
}

// Ask is a request that names sums.
func Ask(md metadata.MD, sums []string) { md[known] = sums }

// Asked are the sums that a request names, at most Most.
func Asked(md metadata.MD) []string {
	sums := md[known]
	return sums[:min(len(sums), Most)]
}

// Same is a header that says that the directory has this sum.
func Same(sum string) metadata.MD { return metadata.Pairs(same, sum) }

// Found is the sum that a header says, or empty.
func Found(md metadata.MD) string { return first(md[same]) }

// Files is a trailer that says what was transferred.
func Files(sum string) metadata.MD { return metadata.Pairs(files, sum) }

// Transferred is the sum that a trailer says, or empty. It comes from a client:
// what is not a sum is left out.
func Transferred(md metadata.MD) string {
	sum := first(md[files])
	if b, err := hex.DecodeString(sum); err != nil || len(b) != sha256.Size {
		return ""
	}
	return sum
}

func first(values []string) string {
	if len(values) == 0 {
		return ""
	}
	return values[0]
}
