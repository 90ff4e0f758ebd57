// Program ferretdb is a test double of MongoDB, for machines that have none: FerretDB
// 1.24 on SQLite, which speaks MongoDB's protocol, behind a proxy that lets one command
// through at a time. It prints its URL, and ends when its standard input does.
//
// The proxy is what makes the double usable: FerretDB 1 does not update a document
// atomically (of 200 races of eight writers for one document four had one winner),
// so that a correct store would hand out a lease several times. MongoDB does, for one
// document. The double has no transactions, no indexes that delete, no elections and no
// write concern, and it is no server that a store supports.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"os/signal"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "ferretdb:", err)
		os.Exit(1)
	}
}

func run() (err error) {
	// One that is meant for whoever started it ends it too, and with that the input.
	signal.Ignore(os.Interrupt)
	folder, err := os.MkdirTemp("", "samecommit-ferretdb-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	database, err := ferretdb.New(&ferretdb.Config{
		Listener:  ferretdb.ListenerConfig{TCP: "127.0.0.1:0"},
		Handler:   "sqlite",
		SQLiteURL: (&url.URL{Scheme: "file", Path: folder + "/"}).String(),
		Logger:    slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- database.Run(ctx) }()
	inside, err := url.Parse(database.MongoDBURI())
	if err == nil {
		err = serve(inside.Host)
	}
	stop()
	return errors.Join(err, <-ended)
}

// serve runs the proxy until the standard input ends.
func serve(server string) error {
	proxy, err := newProxy(server)
	if err != nil {
		return err
	}
	fmt.Println("mongodb://" + proxy.listener.Addr().String() + "/?directConnection=true")
	go proxy.serve()
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, proxy.listener.Close())
}
