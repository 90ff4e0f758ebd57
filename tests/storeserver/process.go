package storeserver

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// process is a server's process, which ends with this one: at the latest when its standard
// input does, where it minds that.
type process struct {
	command *exec.Cmd
	input   io.Closer
	output  bytes.Buffer
	// ended is closed when it has.
	ended chan struct{}
}

// startProcess starts a server whose standard output goes to output, nil for the text of
// failures.
func startProcess(ctx context.Context, output io.Writer, name string, args ...string) (*process, error) {
	p := &process{command: exec.CommandContext(context.WithoutCancel(ctx), name, args...), ended: make(chan struct{})}
	p.command.Stdout, p.command.Stderr = output, &p.output
	if output == nil {
		p.command.Stdout = &p.output
	}
	var err error
	if p.input, err = p.command.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		defer close(p.ended)
		_ = p.command.Wait()
	}()
	return p, nil
}

// failure is why the process has ended.
func (p *process) failure() error {
	return fmt.Errorf("%s has ended (%v): %s", p.command.Path, p.command.ProcessState, p.output.String())
}

// stop asks the process to end, waits, and removes its folder.
func (p *process) stop(folder string) error {
	_ = p.input.Close()
	_ = p.command.Process.Signal(os.Interrupt)
	<-p.ended
	return os.RemoveAll(folder)
}
