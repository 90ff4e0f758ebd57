module github.com/samecommit/samecommit/examples

go 1.26.0

replace github.com/samecommit/samecommit => ../

replace github.com/samecommit/samecommit/tests => ../tests
