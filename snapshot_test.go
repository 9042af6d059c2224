package mayfly

import "testing"

func TestAfterStepIsWhereTheNextOneBegan(t *testing.T) {
	list := []Snapshot{
		{ID: "base", Kind: BaselineSnapshot, Run: "r"},
		{ID: "one", Kind: StepSnapshot, Run: "r", Step: 1},
		{ID: "mine", Kind: ManualSnapshot},
		{ID: "other", Kind: StepSnapshot, Run: "q", Step: 1},
		{ID: "two", Kind: StepSnapshot, Run: "r", Step: 2},
		{ID: "four", Kind: StepSnapshot, Run: "r", Step: 4}, // 3 could not be taken
		{ID: "end", Kind: FinalSnapshot, Run: "r"},
	}
	for step, want := range map[int]string{0: "base", 1: "two", 2: "four", 4: "end"} {
		if got, err := AfterStep(list, "r", step); err != nil || got.ID != want {
			t.Errorf("after step %d: got = %s, %v, want %s", step, got.ID, err, want)
		}
	}
	for step, want := range map[int]string{1: "one", 4: "four"} {
		if got, err := BeforeStep(list, "r", step); err != nil || got.ID != want {
			t.Errorf("before step %d: got = %s, %v, want %s", step, got.ID, err, want)
		}
	}
	for name, c := range map[string]struct {
		run  string
		step int
		want Kind
	}{
		"a step without a snapshot": {"r", 3, NotFound},
		"a step too many":           {"r", 5, NotFound},
		"a negative step":           {"r", -1, NotFound},
		"another run's last step":   {"q", 1, Conflict}, // it has not ended
		"an unknown run":            {"x", 1, NotFound},
		"before an unknown run":     {"x", 0, NotFound},
	} {
		if got, err := AfterStep(list, c.run, c.step); KindOf(err) != c.want {
			t.Errorf("%s: got = %v, %v, want kind %s", name, got, err, c.want)
		}
	}
	if got, err := BeforeStep(list, "r", 3); KindOf(err) != NotFound {
		t.Errorf("before a step without a snapshot: got = %v, %v, want kind %s", got, err, NotFound)
	}
}
