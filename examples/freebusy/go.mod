module example.com/freebusy

go 1.24
