# Adds two numbers with add.sh and looks at the sum.
got=$(sh add.sh 2 3) || exit 1
[ "$got" = 5 ] || { echo "FAIL: got = $got, want 5"; exit 1; }
echo "PASS: 2 + 3 = 5"
