package freebusy

import (
	"slices"
	"testing"
)

func spans(t *testing.T, texts ...string) []Span {
	t.Helper()
	s, err := ParseAll(texts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseReadsWhatStringWrites(t *testing.T) {
	for _, text := range []string{"09:00-10:30", "00:00-24:00", "23:59-24:00", "12:00-12:00"} {
		s, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.String(); got != text {
			t.Errorf("got = %s, want %s", got, text)
		}
	}
}

func TestParseRefusesNonsense(t *testing.T) {
	for _, text := range []string{"", "9", "09:00", "10:00-09:00", "09:60-10:00", "-1:00-02:00", "09:00-24:01", "a:b-c:d"} {
		if s, err := Parse(text); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", text, s)
		}
	}
}

func merge(t *testing.T, want []Span, texts ...string) {
	t.Helper()
	if got := Merge(spans(t, texts...)); !slices.Equal(got, want) {
		t.Errorf("got = %v, want %v", got, want)
	}
}

func TestMergeSorts(t *testing.T) {
	merge(t, spans(t, "09:00-10:00", "11:00-12:00"), "11:00-12:00", "09:00-10:00")
}

func TestMergeJoinsOverlapping(t *testing.T) {
	merge(t, spans(t, "09:00-11:00"), "09:00-10:30", "10:00-11:00")
}

func TestMergeKeepsTheLongerOfNested(t *testing.T) {
	merge(t, spans(t, "09:00-12:00"), "09:00-12:00", "10:00-11:00")
}

func TestMergeJoinsBackToBack(t *testing.T) {
	merge(t, spans(t, "09:00-11:00"), "09:00-10:30", "10:30-11:00")
}

func TestMergeKeepsGapOfOneMinute(t *testing.T) {
	merge(t, spans(t, "09:00-10:00", "10:01-11:00"), "09:00-10:00", "10:01-11:00")
}

func free(t *testing.T, minutes int, want []Span, busy ...string) {
	t.Helper()
	if got := Free(spans(t, busy...), Span{9 * 60, 17 * 60}, minutes); !slices.Equal(got, want) {
		t.Errorf("got = %v, want %v", got, want)
	}
}

func TestFreeIsTheWholeWindowWithoutAppointments(t *testing.T) {
	free(t, 30, spans(t, "09:00-17:00"))
}

func TestFreeLeavesOutWhatIsTooShort(t *testing.T) {
	free(t, 30, spans(t, "11:00-17:00"), "09:00-10:00", "10:29-11:00")
}

func TestFreeOffersExactlyTheMinutesAsked(t *testing.T) {
	free(t, 30, spans(t, "10:00-10:30", "16:30-17:00"), "09:00-10:00", "10:30-16:30")
}

func TestFreeIgnoresAppointmentsOutside(t *testing.T) {
	free(t, 30, spans(t, "09:00-16:00"), "07:00-09:00", "16:00-18:00", "19:00-20:00")
}

func TestFreeOfFullDayIsNothing(t *testing.T) {
	free(t, 1, nil, "08:00-18:00")
}
