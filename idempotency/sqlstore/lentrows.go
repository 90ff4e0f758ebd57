package sqlstore

import (
	"database/sql/driver"
	"errors"
	"io"
	"reflect"
)

// lentRows looks at the error with which rows end, which a caller may not ask for. It has
// what database/sql asks rows for; where those of the driver have it not, it says what
// database/sql would.
type lentRows struct {
	driver.Rows
	tx *lentTx
}

func lendRows(tx *lentTx, rows driver.Rows, err error) (driver.Rows, error) {
	if err != nil {
		return nil, tx.Note(err)
	}
	tx.openRows.Add(1)
	return &lentRows{rows, tx}, nil
}

func (r *lentRows) Next(dest []driver.Value) error {
	return r.tx.use(func(driver.Conn) error {
		err := r.Rows.Next(dest)
		if err != nil && !errors.Is(err, io.EOF) {
			_ = r.tx.Note(err)
		}
		return err
	})
}

func (r *lentRows) Close() error {
	r.tx.openRows.Add(-1) // database/sql calls it once
	return r.tx.use(func(driver.Conn) error { return r.tx.Note(r.Rows.Close()) })
}

func (r *lentRows) HasNextResultSet() bool {
	rows, ok := r.Rows.(driver.RowsNextResultSet)
	return ok && rows.HasNextResultSet()
}

func (r *lentRows) NextResultSet() error {
	if rows, ok := r.Rows.(driver.RowsNextResultSet); ok {
		return r.tx.use(func(driver.Conn) error { return r.tx.Note(rows.NextResultSet()) })
	}
	return io.EOF
}

func (r *lentRows) ColumnTypeScanType(index int) reflect.Type {
	if rows, ok := r.Rows.(driver.RowsColumnTypeScanType); ok {
		return rows.ColumnTypeScanType(index)
	}
	return reflect.TypeFor[any]()
}

func (r *lentRows) ColumnTypeDatabaseTypeName(index int) string {
	if rows, ok := r.Rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		return rows.ColumnTypeDatabaseTypeName(index)
	}
	return ""
}

func (r *lentRows) ColumnTypeLength(index int) (length int64, ok bool) {
	if rows, ok := r.Rows.(driver.RowsColumnTypeLength); ok {
		return rows.ColumnTypeLength(index)
	}
	return 0, false
}

func (r *lentRows) ColumnTypeNullable(index int) (nullable, ok bool) {
	if rows, ok := r.Rows.(driver.RowsColumnTypeNullable); ok {
		return rows.ColumnTypeNullable(index)
	}
	return false, false
}

func (r *lentRows) ColumnTypePrecisionScale(index int) (precision, scale int64, ok bool) {
	if rows, ok := r.Rows.(driver.RowsColumnTypePrecisionScale); ok {
		return rows.ColumnTypePrecisionScale(index)
	}
	return 0, 0, false
}
