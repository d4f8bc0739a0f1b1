package engine

import (
	"context"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"

	"proa/internal/state"
)

// saver writes changed records, many in one transaction.
//
// What a client was promised is saved before it is answered (save): create,
// rename, update, a stop by hand. What can be found out again is saved soon
// after (later): that it runs is shown by its shim, how it ended by the shim's
// exit record, which is kept until the save is done. So a start does not wait
// for the disk; a power cut within these milliseconds makes a container look as
// if it had not been started.
type saver struct {
	db  *state.DB
	log *slog.Logger

	wake chan struct{}
	mu   sync.Mutex // guards the two below; never held across I/O
	due  map[*box][]func()
	busy sync.Mutex // one flush at a time; held across the transaction, by nothing that a reader needs
}

// retrySave is the pause after a save that failed, as on a full disk.
const retrySave = time.Second

func newSaver(db *state.DB, log *slog.Logger) *saver {
	return &saver{db: db, log: log, wake: make(chan struct{}, 1), due: map[*box][]func(){}}
}

// later asks for a save; then, if not nil, runs once the record is on disk.
func (s *saver) later(b *box, then func()) {
	s.mu.Lock()
	fs := s.due[b]
	if then != nil {
		fs = append(fs, then)
	}
	s.due[b] = fs
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// save saves now.
func (s *saver) save(b *box) error {
	s.mu.Lock()
	s.due[b] = append(s.due[b], func() {})
	s.mu.Unlock()
	return s.flush()
}

func (s *saver) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			if err := s.flush(); err != nil {
				s.log.Error("cannot save container records; trying again", "err", err)
				select {
				case <-time.After(retrySave):
				case <-ctx.Done():
					return
				}
				select {
				case s.wake <- struct{}{}:
				default:
				}
			}
		}
	}
}

// flush writes all that is due; what could not be written stays due.
func (s *saver) flush() error {
	s.busy.Lock()
	defer s.busy.Unlock()
	s.mu.Lock()
	due := s.due
	s.due = map[*box][]func(){}
	s.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	err := s.db.Update(func(tx *bolt.Tx) error {
		for b := range due {
			// Read inside the transaction: a removal is one as well, and marks
			// the box before it begins.
			b.mu.Lock()
			r, gone := b.rec, b.gone
			b.mu.Unlock()
			if gone {
				continue
			}
			if err := records.Put(tx, r.ID, r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.mu.Lock()
		for b, fs := range due {
			s.due[b] = append(fs, s.due[b]...)
		}
		s.mu.Unlock()
		return err
	}
	for _, fs := range due {
		for _, f := range fs {
			f()
		}
	}
	return nil
}
