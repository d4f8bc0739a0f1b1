// Package unchanged is how a builder and a client find out that a directory is
// as it was, without a word about each of its files. It owns the words that
// both say beside BuildKit's transfer of files (moby.filesync.v1.FileSync,
// DiffCopy), and the sum of a directory; it never touches files.
//
//	builder                                      client
//	  | DiffCopy, with known: salt, a', b'          |
//	  |-------------------------------------------->| walks, sums
//	  |                          header same: b'    |
//	  |<--------------------------------------------|
//	  | FIN                                         |
//	  |-------------------------------------------->|
//	  |                                  FIN, end   |
//	  |<--------------------------------------------|
//
// Where nothing fits, the header comes without same, and the transfer goes on
// as ever; the builder adds up what it is told of the files itself. Sums go out
// salted: who does not know a directory is not told enough to claim that he has
// it. A client that does not know these words, as Docker's, ignores them.
package unchanged

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"maps"
	"slices"

	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/metadata"
)

// Names of gRPC metadata.
const (
	known = "proa-known" // request: a salt, then salted sums of what the builder has; one value each
	same  = "proa-same"  // response header: the salted sum that the directory has now
)

// most is how many sums a builder names at most: a header has its bounds.
const most = 8

// Sum adds up what a walk tells of files, in its order: everything that
// BuildKit compares (path, type, mode, owner, size, time in ns, target of a
// link, device) and the extended attributes. Two walks with the same sum are
// taken for the same files with the same content, as a transfer takes a file
// of the same size and time.
type Sum struct {
	h   hash.Hash // nil: the sum of nothing
	buf []byte
}

// Add adds one file. Names need not be UTF-8.
func (s *Sum) Add(st *types.Stat) error {
	attrs := st.Xattrs
	if len(attrs) > 0 { // a map is marshalled in any order
		st = st.CloneVT()
		st.Xattrs = nil
	}
	size := st.SizeVT()
	s.buf = binary.BigEndian.AppendUint32(s.buf[:0], uint32(size)) // an entry has no more than some paths and attributes
	s.buf = slices.Grow(s.buf, size)[:4+size]
	if _, err := st.MarshalToSizedBufferVT(s.buf[4:]); err != nil {
		return fmt.Errorf("cannot add up the files of a directory: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(len(name)))
		s.buf = append(s.buf, name...)
		s.buf = binary.BigEndian.AppendUint32(s.buf, uint32(len(attrs[name])))
		s.buf = append(s.buf, attrs[name]...)
	}
	s.buf = append(s.buf, 0, 0, 0, 0) // the end: no attribute has an empty name
	s.hash().Write(s.buf)
	return nil
}

// String is the sum, in hexadecimal digits.
func (s *Sum) String() string { return hex.EncodeToString(s.hash().Sum(nil)) }

func (s *Sum) hash() hash.Hash {
	if s.h == nil {
		s.h = sha256.New()
	}
	return s.h
}

// Question is what a builder asks about sums. The zero Question asks nothing.
type Question struct {
	salt string
	sums map[string]string // salted -> sum
}

// Ask makes a question about sums, the first eight of them.
func Ask(sums []string) Question {
	if len(sums) == 0 {
		return Question{}
	}
	q := Question{rand.Text(), make(map[string]string, len(sums))}
	for _, s := range sums[:min(len(sums), most)] {
		q.sums[salted(q.salt, s)] = s
	}
	return q
}

// Put puts the question into a request, in the place of one that was there.
func (q Question) Put(md metadata.MD) {
	delete(md, known)
	if len(q.sums) > 0 {
		md[known] = append([]string{q.salt}, slices.Sorted(maps.Keys(q.sums))...)
	}
}

// Asks reports whether there is anything to answer.
func (q Question) Asks() bool { return len(q.sums) > 0 }

// Answered is the sum that a header says the directory has, or empty.
func (q Question) Answered(header metadata.MD) string {
	if v := header[same]; len(v) == 1 {
		return q.sums[v[0]]
	}
	return ""
}

// Asked is the other end of a Question.
type Asked []string

// From is what a request asks.
func From(md metadata.MD) Asked { return md[known] }

// Answer is the header to send if a directory with this sum was asked about.
func (a Asked) Answer(sum string) (metadata.MD, bool) {
	if len(a) < 2 {
		return nil, false
	}
	if s := salted(a[0], sum); slices.Contains(a[1:], s) {
		return metadata.Pairs(same, s), true
	}
	return nil, false
}

func salted(salt, sum string) string {
	h := sha256.Sum256([]byte(salt + " " + sum))
	return hex.EncodeToString(h[:])
}
