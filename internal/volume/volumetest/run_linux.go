package volumetest

import (
	"testing"

	"mayfly.dev/mayfly/internal/volume"
)

// Run runs the suite. open returns an empty, recovered pool, and closes it
// when its test is over. It needs root.
func Run(t *testing.T, open func(t testing.TB) volume.Pool) {
	for name, test := range map[string]func(*testing.T, volume.Pool){
		"CreateMakesAnEmptyVolume":               testCreate,
		"RefusesNamesThatAreNoIdentifiers":       testNames,
		"BuildLayerCallsFillOnce":                testBuildLayer,
		"FailedBuildLeavesNothing":               testFailedBuild,
		"ConcurrentBuildsShareTheWork":           testConcurrentBuilds,
		"CancelledBuildIsTakenOver":              testCancelledBuild,
		"CommitLayerKeepsTheUpperDirectory":      testCommitLayer,
		"SnapshotOfAFrozenWriterIsExact":         testFrozenWriter,
		"SnapshotKeepsEverything":                testSnapshotKeeps,
		"RollbackRestoresDeletedFile":            testRollback,
		"RollbackOfOneSideLeavesTheOther":        testRollbackSides,
		"SpareIsExchangedForADatabase":           testSpares,
		"RollbackOfDatabasesFindsEveryChange":    testRollbackOfChangedRows,
		"ForkOfAForkIsIndependent":               testForks,
		"MissingThingsAreErrors":                 testMissing,
		"DestroyRemovesEverything":               testDestroy,
		"DestroyRemovesDeeplyNestedDirectories":  testDeep,
		"DestroyGivesSpaceBack":                  testSpace,
		"CandidatesCoverRandomChanges":           testCandidatesRandom,
		"CandidatesFollowTheChange":              testCandidatesCost,
		"CandidatesUnderstandRenamesOfPrefix":    testCandidatesPrefix,
		"CandidatesOfDifferentLayers":            testCandidatesLayers,
		"ViewStaysInside":                        testView,
		"LimitHoldsDataAndInodes":                testLimit,
		"LimitSurvivesSnapshotRollbackAndFork":   testLimitSurvives,
		"RecoverAndCloseAreHarmlessWhenRepeated": testRepeat,
	} {
		t.Run(name, func(t *testing.T) { test(t, open(t)) })
	}
}
