// Package orm has only tests: each snippet of docs/database-sql.md, on PostgreSQL. It is a
// module of its own, for its many dependencies.
package orm
