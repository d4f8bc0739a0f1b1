package logs

import (
	"compress/flate"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"proa/internal/sys"
)

// packedSuffix is what a compressed file of a log has behind its number.
const packedSuffix = ".gz"

// packedID marks the subfield of a gzip header (RFC 1952, 2.3.1.1) with the
// number of the inode that the compressed file was made of. A reader that
// holds the plain file open finds its place in the log by it.
const packedID = "Pi"

// pack compresses the file at name into name.gz and removes it. The compressed
// file gets its name when it is whole, and the time of the plain one; a crash
// at any point leaves the plain file, which counts where both exist.
func pack(name string) error {
	src, err := os.Open(name)
	if err != nil {
		return fmt.Errorf("cannot compress log: %w", err)
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("cannot compress log: %w", err)
	}
	part := name + packedSuffix + ".part"
	dst, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return fmt.Errorf("cannot compress log: %w", err)
	}
	z, _ := gzip.NewWriterLevel(dst, gzip.BestSpeed) // fails on an unknown level only
	z.ModTime = st.ModTime()
	z.Extra = binary.LittleEndian.AppendUint64([]byte{packedID[0], packedID[1], 8, 0}, inode(st))
	_, err = io.Copy(z, src)
	err = errors.Join(err, z.Close(), dst.Close())
	if err == nil {
		err = os.Chtimes(part, st.ModTime(), st.ModTime())
	}
	if err == nil {
		err = os.Rename(part, name+packedSuffix)
	}
	if err != nil {
		_ = os.Remove(part)
		return fmt.Errorf("cannot compress log %q: %w", name, err)
	}
	if err := os.Remove(name); err != nil {
		return fmt.Errorf("cannot compress log: %w", err)
	}
	return nil
}

// packedFrom is the number of the inode that a compressed file was made of; 0
// if it does not say.
func packedFrom(name string) uint64 {
	f, err := os.Open(name)
	if err != nil {
		return 0
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil || len(z.Extra) != 12 || string(z.Extra[:2]) != packedID {
		return 0
	}
	return binary.LittleEndian.Uint64(z.Extra[4:])
}

// unpack writes the records of a compressed file into one without a name. What
// a crash of the host damaged ends the file there.
func unpack(f *os.File) (*os.File, error) {
	out, err := sys.UnnamedFile(filepath.Dir(f.Name()))
	if err != nil {
		return nil, fmt.Errorf("cannot read compressed log: %w", err)
	}
	z, err := gzip.NewReader(io.NewSectionReader(f, 0, 1<<62))
	if err == nil {
		_, err = io.Copy(out, z)
	}
	if err != nil && !damaged(err) {
		out.Close()
		return nil, fmt.Errorf("cannot read compressed log: %w", err)
	}
	return out, nil
}

// damaged reports whether an error says that bytes are no gzip, or end too early.
func damaged(err error) bool {
	var corrupt flate.CorruptInputError
	return errors.As(err, &corrupt) || errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// numbered is the name of a rotated file.
func numbered(path string, i int) string { return path + "." + strconv.Itoa(i) }
