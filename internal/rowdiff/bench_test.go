package rowdiff

import (
	"fmt"
	"io"
	"os/exec"
	"testing"

	"golang.org/x/sync/errgroup"
)

// BenchmarkThousandRows finds 1,000 changed rows in a database of MAYFLY_MB
// megabytes (16 if not set), and for comparison dumps both states in full.
func BenchmarkThousandRows(b *testing.B) {
	in := ownInstance(b)
	c := in.connect(b, "postgres")
	rows := number("MAYFLY_MB", 16) * 7500
	execSQL(b, c, fmt.Sprintf(`CREATE TABLE account (id int PRIMARY KEY, balance int, filler char(84));
		INSERT INTO account SELECT g, 0, '' FROM generate_series(1, %d) g; CREATE TABLE history (account int, change int, at timestamptz DEFAULT now())`, rows))
	old := in.clone(b)
	execSQL(b, c, fmt.Sprintf("UPDATE account SET balance = id WHERE id %% %d = 0 AND id <= %d", rows/1000, rows/1000*1000))
	measure := func(b *testing.B, o Options) {
		x, y := old.connect(b, "postgres"), in.connect(b, "postgres")
		for b.Loop() {
			d, err := compare(b.Context(), x, y, o)
			if err != nil {
				b.Fatal(err)
			}
			if len(d.Tables) != 1 || d.Tables[0].Updated != 1000 {
				b.Fatalf("tables = %d, want one with 1000 updated rows", len(d.Tables))
			}
			if err := d.JSON(b.Context(), io.Discard); err != nil {
				b.Fatal(err)
			}
			d.Close()
		}
	}
	b.Run("files", func(b *testing.B) { measure(b, Options{FromDir: old.root, ToDir: in.root}) })
	b.Run("rows", func(b *testing.B) { measure(b, Options{}) })
	b.Run("dumps", func(b *testing.B) {
		for b.Loop() {
			var g errgroup.Group
			for _, side := range []*instance{old, in} {
				g.Go(func() error {
					return exec.Command("/bin/sh", "-c", bin+"pg_dump -U postgres -h "+side.dir+" postgres | sort | sha256sum").Run()
				})
			}
			if err := g.Wait(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
