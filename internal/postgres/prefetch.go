package postgres

import (
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hot are the files of the system catalogs that the first connection to a
// database reads, by the numbers that they have since initdb.
var hot = strings.Fields(`1247 1249 1255 1259 2601 2602 2603 2605 2610 2615 2616 2617 2618 2619 2653 2654 2655 2659 2661
2662 2663 2678 2679 2684 2686 2687 2688 2690 2691 2693 2696 2703 2704 2838 2839 3379 pg_filenode.map`)

// maxPrefetched bounds how many databases are read ahead.
const maxPrefetched = 4

// prefetch has the kernel read the catalogs while the server starts: a copy of
// a data directory shares no cache with its origin, and the first connections
// would wait for one page after the other. That a file is not there is of no
// importance.
func (i Instance) prefetch() {
	root, err := os.OpenRoot(i.Data.Host)
	if err != nil {
		return
	}
	defer root.Close()
	for _, e := range entries(root, "global") {
		willNeed(root, "global/"+e.Name())
	}
	left := maxPrefetched
	for _, e := range entries(root, "base") {
		if n, err := strconv.Atoi(e.Name()); err != nil || n < firstOwnDatabase || left == 0 {
			continue
		}
		left--
		for _, name := range hot {
			willNeed(root, "base/"+e.Name()+"/"+name)
		}
	}
}

// firstOwnDatabase is the number of the database postgres; those before it are
// templates.
const firstOwnDatabase = 5

func entries(root *os.Root, dir string) []fs.DirEntry {
	list, _ := fs.ReadDir(root.FS(), dir)
	return list
}

func willNeed(root *os.Root, name string) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_WILLNEED)
}
