package sys

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// WriteSynced makes a file of data, which must not be there yet (fs.ErrExist),
// and returns when its contents are on the disk. Its name is there only after
// SyncDir of its directory. Of a file that cannot be written nothing is left.
// Errors name the file.
func WriteSynced(path string, data []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	return fill(f, data)
}

// ReplaceSynced gives path the contents data and the mode, new or not, and
// returns when they are on the disk. Whoever reads it meanwhile, and whoever
// finds it after a power cut, has the old contents or the new ones whole; a cut
// in the middle may leave a file .NAME.new-* beside it. Errors name the file.
func ReplaceSynced(path string, data []byte, mode fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".new-*")
	if err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return errors.Join(err, f.Close(), os.Remove(f.Name()))
	}
	if err := fill(f, data); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return SyncDir(dir)
}

// fill writes a new file and closes it, or removes it.
func fill(f *os.File, data []byte) error {
	_, err := f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// SyncDir returns when the names in dir are on the disk.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
