package local

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// instantVariable says how many snapshots TestFilesAndRowsAreOfTheSameInstant
// takes.
const instantVariable = "MAYFLY_INSTANT_ROUNDS"

// count counts in a row and then in a file, one step at a time.
const count = `psql -qc 'CREATE TABLE tick (n int); INSERT INTO tick VALUES (0)' && echo 0 >tick
coproc P { stdbuf -oL psql -qAt; }
while n=$((n+1)); do
  echo "UPDATE tick SET n = $n RETURNING n;" >&${P[1]}
  read -r got <&${P[0]} || exit 1
  echo $n >tick.next && mv tick.next tick
done`

func TestFilesAndRowsAreOfTheSameInstant(t *testing.T) {
	needPostgres(t)
	rounds := 20
	if s := os.Getenv(instantVariable); s != "" {
		var err error
		if rounds, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want("cat >count <<'EOF'\n"+count+"\nEOF", "")
	p.begin("exec bash count")
	p.want("until [ -s tick ] && [ $(cat tick) -gt 3 ]; do sleep 0.01; done", "")
	before, ahead := 0, 0
	for round := range rounds {
		time.Sleep(rand.N(20 * time.Millisecond))
		id := fmt.Sprintf("s%d", round)
		p.snapshot(id)
		fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: id})
		said, code := fork.sh("cat tick; psql -Atc 'SELECT n FROM tick'")
		var file, row int
		if n, err := fmt.Sscan(said, &file, &row); n != 2 || code != 0 {
			t.Fatalf("%s: got = %q (status %d, %v), want two numbers", id, said, code, err)
		}
		if row-file != 0 && row-file != 1 {
			t.Errorf("%s: the row is %d, the file %d: want the same, or the row one ahead", id, row, file)
		}
		if file <= before {
			t.Errorf("%s: the file is %d after %d: nobody counts", id, file, before)
		}
		before, ahead = file, ahead+row-file
		if err := d.Destroy(t.Context(), fork.h); err != nil {
			t.Fatal(err)
		}
		if err := d.RemoveSnapshot(t.Context(), p.h, id); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d snapshots up to %d; in %d the row was the one in flight", rounds, before, ahead)
}
