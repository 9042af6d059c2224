module mayfly.dev/mayfly

go 1.26.8
