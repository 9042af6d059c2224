package record

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// maxEntries bounds how many names of a run's directory are looked at.
const maxEntries = 4096

// OpenRun opens the directory of a run below a host directory.
func OpenRun(host, run string) (*os.File, error) {
	dir, err := unix.Open(host, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: host, Err: err}
	}
	defer unix.Close(dir)
	fd, err := openBeneath(dir, "runs/"+run, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "runs/" + run, Err: err}
	}
	return os.NewFile(uintptr(fd), run), nil
}

// openBeneath opens a path below dir that leads through no link and to no
// other file system. It never blocks, whatever lies there.
func openBeneath(dir int, path string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{
			Flags:   flags | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// openRegular opens a regular file in dir for reading.
func openRegular(dir int, name string) (int, error) {
	fd, err := openBeneath(dir, name, unix.O_RDONLY)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, ErrCorrupt
	}
	return fd, nil
}

// ReadExit returns the exit record in a run's directory, at most MaxExit
// bytes of it. The error is fs.ErrNotExist when there is none.
func ReadExit(dir *os.File) ([]byte, error) {
	fd, err := openRegular(int(dir.Fd()), ExitFile)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: ExitFile, Err: err}
	}
	f := os.NewFile(uintptr(fd), ExitFile)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxExit+1))
	if len(b) > MaxExit {
		return nil, ErrCorrupt
	}
	return b, err
}

// Reader reads a log while it is written.
type Reader struct {
	dir     *os.File
	fd      int    // current segment, -1 when none is open
	number  uint64 // of the current segment, or of the one to open
	closed  bool   // there is a later segment: the current one is complete
	payload uint64 // bytes in the segments up to here
	buf     []byte
	r, w    int // unread part of buf
}

// NewReader reads the log in a run's directory, from its beginning. Closing
// the reader closes dir.
func NewReader(dir *os.File) *Reader {
	return &Reader{dir: dir, fd: -1, buf: make([]byte, 2*maxFrame)}
}

// Next returns the next frame, valid until the next call. The error is io.EOF
// when no more is written yet; then Next may be called again. Where output was
// dropped, a Notice says how much.
func (r *Reader) Next() (Frame, error) {
	for {
		if r.fd < 0 {
			f, err := r.open()
			if err != nil || f.Data != nil {
				return f, err
			}
		}
		f, n, err := ParseFrame(r.buf[r.r:r.w])
		if err != nil {
			return Frame{}, err
		}
		if n > 0 {
			r.r += n
			r.payload += uint64(len(f.Data))
			return f, nil
		}
		more, err := r.fill()
		if err != nil {
			return Frame{}, err
		}
		if more {
			continue
		}
		if !r.closed {
			// Read once more after a later segment is seen: only then is
			// the end of this one final.
			if _, err := r.following(); err != nil {
				return Frame{}, err
			}
			r.closed = true
			continue
		}
		if err := r.advance(); err != nil {
			return Frame{}, err
		}
	}
}

// open opens the segment r.number. It returns a frame with data when output
// was dropped before it.
func (r *Reader) open() (Frame, error) {
	fd, err := openRegular(int(r.dir.Fd()), segmentName(r.number))
	if errors.Is(err, unix.ENOENT) && r.number > 0 {
		// Dropped since it was seen.
		if err := r.advance(); err != nil {
			return Frame{}, err
		}
		return Frame{}, nil
	}
	if errors.Is(err, unix.ENOENT) {
		return Frame{}, io.EOF
	}
	if err != nil {
		return Frame{}, err
	}
	var header [segmentHeader]byte
	n, err := unix.Pread(fd, header[:], 0)
	if err != nil || n < len(header) {
		unix.Close(fd)
		if err == nil {
			err = io.EOF
		}
		return Frame{}, err
	}
	before, err := parseSegmentHeader(header[:], r.number)
	if err == nil && before < r.payload {
		err = ErrCorrupt
	}
	if err == nil {
		_, err = unix.Seek(fd, segmentHeader, io.SeekStart)
	}
	if err != nil {
		unix.Close(fd)
		return Frame{}, err
	}
	dropped := before - r.payload
	r.fd, r.closed, r.payload, r.r, r.w = fd, false, before, 0, 0
	if dropped == 0 {
		return Frame{}, nil
	}
	return r.notice(dropped), nil
}

// notice says that bytes are missing. It bears the time of the frame after
// it, so that times do not go backwards.
func (r *Reader) notice(dropped uint64) Frame {
	f := Frame{Stream: Notice, Data: []byte("[" + strconv.FormatUint(dropped, 10) + " bytes of output dropped]\n")}
	if _, err := r.fill(); err == nil {
		if next, n, err := ParseFrame(r.buf[r.r:r.w]); err == nil && n > 0 {
			f.Time = next.Time
		}
	}
	return f
}

// fill reads more of the current segment and reports whether there was any.
func (r *Reader) fill() (bool, error) {
	r.w = copy(r.buf, r.buf[r.r:r.w])
	r.r = 0
	for {
		n, err := unix.Read(r.fd, r.buf[r.w:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false, err
		}
		r.w += n
		return n > 0, nil
	}
}

// advance turns to the oldest segment after the current one.
func (r *Reader) advance() error {
	next, err := r.following()
	if err != nil {
		return err
	}
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
	r.number = next
	return nil
}

// following returns the number of the oldest segment after the current one;
// io.EOF when there is none.
func (r *Reader) following() (uint64, error) {
	var st unix.Stat_t
	if unix.Fstatat(int(r.dir.Fd()), segmentName(r.number+1), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return r.number + 1, nil
	}
	fd, err := unix.Openat(int(r.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	list := os.NewFile(uintptr(fd), "runs")
	defer list.Close()
	names, err := list.Readdirnames(maxEntries)
	if err != nil && err != io.EOF {
		return 0, err
	}
	oldest, found := uint64(0), false
	for _, name := range names {
		if n, ok := segmentNumber(name); ok && n > r.number && (!found || n < oldest) {
			oldest, found = n, true
		}
	}
	if !found {
		return 0, io.EOF
	}
	return oldest, nil
}

// Close closes the reader and its directory.
func (r *Reader) Close() error {
	if r.fd >= 0 {
		unix.Close(r.fd)
		r.fd = -1
	}
	return r.dir.Close()
}
