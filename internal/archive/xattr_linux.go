package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// attributePrefix marks extended attributes among PAX records.
const attributePrefix = "SCHILY.xattr."

// attributes are the extended attributes to set: those of the user namespace.
// What an overlay would take for its own is refused. security.* (file
// capabilities, labels) and system.* (access control lists) are dropped: they
// grant rights in terms of the machine where the archive was made, and no
// process in an environment could gain any by them.
func (x *extractor) attributes(h *tar.Header) (map[string]string, error) {
	var attrs map[string]string
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, attributePrefix)
		if !ok {
			continue
		}
		namespace, _, _ := strings.Cut(name, ".")
		switch {
		case namespace == "trusted" || name == "user.overlay" || strings.HasPrefix(name, "user.overlay."):
			return nil, entryError(h.Name, "it has the extended attribute %.100q", name)
		case namespace == "user" && (h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeDir):
			if attrs == nil {
				attrs = map[string]string{}
			}
			attrs[name] = value
		default:
			x.stats.Dropped++
		}
	}
	return attrs, nil
}

func setAttributes(name string, fd int, attrs map[string]string) error {
	for attr, value := range attrs {
		err := unix.Fsetxattr(fd, attr, []byte(value), 0)
		switch {
		case errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG), errors.Is(err, unix.EINVAL):
			return entryError(name, "its extended attribute %.100q cannot be set: %w", attr, err)
		case err != nil:
			return fmt.Errorf("unpack %.200q: set the extended attribute %.100q: %w", name, attr, err)
		}
	}
	return nil
}
