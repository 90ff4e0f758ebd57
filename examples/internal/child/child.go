// Package child runs this program again, as a process of its own that does one task and
// may be killed at a point of it.
package child

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// variable makes this program such a process.
const variable = "SAMECOMMIT_EXAMPLE_TASK"

// message is what the process is told.
type message[Task any] struct {
	Task   Task
	KillAt Point
}

// Run does the task in a process of its own, and returns what Work said there. killed
// says that the process was killed, and so has said nothing. Task and Answer pass as JSON.
func Run[Task, Answer any](ctx context.Context, task Task, killAt Point, stderr io.Writer) (answer Answer, killed bool, err error) {
	program, err := os.Executable()
	if err != nil {
		return answer, false, fmt.Errorf("find this program: %w", err)
	}
	text, err := json.Marshal(message[Task]{task, killAt})
	if err != nil {
		return answer, false, fmt.Errorf("write the task: %w", err)
	}
	process := exec.CommandContext(ctx, program)
	process.Env = append(os.Environ(), variable+"="+string(text))
	process.Stderr = stderr
	output, err := process.Output()
	if err != nil {
		if ctx.Err() != nil {
			return answer, false, fmt.Errorf("the process of the task was stopped: %w", context.Cause(ctx))
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == -1 {
			return answer, true, nil
		}
		return answer, false, fmt.Errorf("the process of the task has failed: %w", err)
	}
	if err := json.Unmarshal(output, &answer); err != nil {
		return answer, false, fmt.Errorf("read what the process said: %w", err)
	}
	return answer, false, nil
}

// IsThis reports whether this process is one that Run has started: it calls Work, and
// does nothing else.
func IsThis() bool {
	_, told := os.LookupEnv(variable)
	return told
}

// Work does the task of this process, and says the answer. do calls at at each point.
func Work[Task, Answer any](ctx context.Context, stdout io.Writer, do func(ctx context.Context, task Task, at func(Point)) (Answer, error)) error {
	var told message[Task]
	if err := json.Unmarshal([]byte(os.Getenv(variable)), &told); err != nil {
		return fmt.Errorf("read the task in %s: %w", variable, err)
	}
	answer, err := do(ctx, told.Task, told.KillAt.reached)
	if err != nil {
		return err
	}
	return json.NewEncoder(stdout).Encode(answer)
}
