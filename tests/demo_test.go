//go:build unix

package tests_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/samecommit/samecommit/internal/pgtest"
)

// demoLimit is far more than the demo takes, on a busy machine too; it turns a
// hang into a failure.
const demoLimit = 10 * time.Minute

// buildExample builds a program of the examples and returns its path.
func buildExample(t *testing.T, name string) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./"+name)
	build.Dir = filepath.Join("..", "examples")
	if output, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, output)
	}
	return program
}

// The demo is built once and run as its users run it: as a program, on a server
// that it finds by itself.
func TestDemo(t *testing.T) {
	t.Parallel()
	program := buildExample(t, "payments")

	t.Run("safe", func(t *testing.T) {
		t.Parallel()
		demo := newDemo(t, program, "--json", "-n", "60", "-timeout", "5m") // on a busy machine
		report, code := demo.audit(t)
		if code != 0 {
			t.Errorf("exit status %d, want 0\n%s", code, demo.stderr)
		}
		want := demoReport{Requested: 60, Effects: 60, BalanceOK: true, BurstRequested: 1000, BurstExecuted: 1, BurstReplayed: 999}
		if !report.sameCounts(&want) {
			t.Errorf("got %+v, want %+v\n%s", report, want, demo.stderr)
		}
		// Of 12 answers to each charge at most one is the first.
		if report.Replayed < 60*11 {
			t.Errorf("%d answers replayed, want at least %d", report.Replayed, 60*11)
		}
		if report.CommitsCut == 0 {
			t.Errorf("no reply to COMMIT was cut\n%s", demo.stderr)
		}
		if n := report.BurstMostConnections; n < 1 || n > 2 {
			t.Errorf("at most %d connections were in use for the burst, want 1 or 2", n)
		}
		if report.UnrelatedIdleP50 == 0 || report.UnrelatedIdleP50 > report.UnrelatedIdleP99 || report.UnrelatedP50 == 0 || report.UnrelatedP50 > report.UnrelatedP99 {
			t.Errorf("unrelated requests were not measured: %+v", report)
		}
	})

	// So few charges that only the first reply is sure to be cut. A replay ends with a commit
	// too: after each of the four that is acknowledged, but the last, one more may be.
	t.Run("one charge", func(t *testing.T) {
		t.Parallel()
		demo := newDemo(t, program, "--json", "-n", "1", "-again", "0", "-burst", "1", "-pool", "1", "-kill-every", "0")
		report, code := demo.audit(t)
		if code != 0 {
			t.Errorf("exit status %d, want 0\n%s", code, demo.stderr)
		}
		want := demoReport{Requested: 1, Effects: 1, BalanceOK: true, BurstRequested: 1, BurstExecuted: 1}
		if !report.sameCounts(&want) || report.CommitsCut < 1 || report.CommitsCut > 4 || report.BurstMostConnections != 1 {
			t.Errorf("got %+v, want %+v, 1 to 4 replies cut and 1 connection\n%s", report, want, demo.stderr)
		}
	})

	t.Run("nothing breaks", func(t *testing.T) {
		t.Parallel()
		demo := newDemo(t, program, "--json", "-n", "5", "-burst", "0", "-cut-every", "0", "-kill-every", "0")
		report, code := demo.audit(t)
		if code != 0 {
			t.Errorf("exit status %d, want 0\n%s", code, demo.stderr)
		}
		if want := (demoReport{Requested: 5, Effects: 5, Replayed: 55, BalanceOK: true}); report != want {
			t.Errorf("got %+v, want %+v\n%s", report, want, demo.stderr)
		}
	})

	t.Run("naive", func(t *testing.T) {
		t.Parallel()
		// Where the kills land is chance. The first reply to COMMIT is always cut,
		// and that charge is then made again.
		demo := newDemo(t, program, "--naive", "--json", "-n", "60", "-burst", "100")
		report, code := demo.audit(t)
		if code != 0 {
			t.Errorf("exit status %d, want 0: going wrong is its purpose\n%s", code, demo.stderr)
		}
		if report.DoubleEffects == 0 || report.CommitsCut == 0 {
			t.Errorf("nothing went wrong, so --naive shows nothing: %+v\n%s", report, demo.stderr)
		}
		if !strings.Contains(demo.stderr.String(), "which is what --naive is for") {
			t.Errorf("it does not say that going wrong is its purpose:\n%s", demo.stderr)
		}
	})

	t.Run("serve", func(t *testing.T) {
		t.Parallel()
		testServe(t, newDemo(t, program, "--serve"))
	})

	t.Run("usage", func(t *testing.T) {
		t.Parallel()
		for _, test := range []struct {
			args []string
			code int
			want string
		}{
			{[]string{"--help"}, 0, "-naive"},
			{[]string{"-n", "0"}, 2, "-n is 0"},
			{[]string{"-burst", "-1"}, 2, "-burst is -1"},
			{[]string{"-burst", "5001"}, 2, "-burst is 5001"},
			{[]string{"-pool", "0"}, 2, "-pool is 0"},
			{[]string{"-cut-every", "-1ms"}, 2, "-cut-every is negative"},
			{[]string{"--serve", "--json"}, 2, "use one of them"},
			{[]string{"300"}, 2, `"300"`},
		} {
			demo := newDemo(t, program, test.args...)
			if code := demo.exitCode(t, demo.cmd.Run()); code != test.code {
				t.Errorf("%q: exit status %d, want %d", test.args, code, test.code)
			}
			if !strings.Contains(demo.stderr.String(), test.want) {
				t.Errorf("%q: the message lacks %q:\n%s", test.args, test.want, demo.stderr)
			}
		}
	})
}

// testServe follows the lines that --serve prints, then ends it with ctrl-C.
func testServe(t *testing.T, demo *demoRun) {
	t.Helper()
	output, err := demo.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := demo.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for scanner := bufio.NewScanner(output); len(lines) < 5; {
		if !scanner.Scan() {
			// Its end is how the run failed, which the log below says.
			_ = demo.cmd.Wait()
			t.Fatalf("it ended after %d curl lines (%v)\n%s", len(lines), scanner.Err(), demo.stderr)
		}
		if strings.HasPrefix(scanner.Text(), "curl ") {
			lines = append(lines, scanner.Text())
		}
	}

	first := curl(t, lines[0])
	if first.status != http.StatusCreated || first.replayed {
		t.Errorf("the first answer is %+v, want 201 and no replay", first)
	}
	again := curl(t, lines[1])
	if again.status != http.StatusCreated || !again.replayed || again.body != first.body {
		t.Errorf("the second answer is %+v, want %+v replayed", again, first)
	}
	other := curl(t, lines[2])
	if other.status != http.StatusUnprocessableEntity || !other.problem {
		t.Errorf("another body under the key is answered %+v, want a problem with 422", other)
	}

	second := curl(t, lines[3])
	if second.status != http.StatusCreated || second.replayed || second.body == first.body {
		t.Errorf("another key is answered %+v, want a charge of its own beside %+v", second, first)
	}
	calls := strings.Split(strings.TrimSuffix(lines[4], " & wait"), " & ")
	answers := make([]curlAnswer, len(calls))
	var group sync.WaitGroup
	for i, line := range calls {
		group.Go(func() { answers[i] = curl(t, line) })
	}
	group.Wait()
	if len(answers) != 2 || answers[0].status != http.StatusCreated || answers[0].body != answers[1].body || answers[0].replayed == answers[1].replayed {
		t.Errorf("two at once are answered %+v, want one charge and its replay", answers)
	}

	// What the lines do not show.
	noKey := strings.Replace(lines[0], "try-1", "", 1)
	if got := curl(t, noKey); got.status != http.StatusBadRequest || !got.problem {
		t.Errorf("no key is answered %+v, want a problem with 400", got)
	}
	badBody := strings.Replace(strings.Replace(lines[0], "1250", "-1", 1), "try-1", "try-4", 1)
	if got := curl(t, badBody); got.status != http.StatusBadRequest || !got.problem {
		t.Errorf("a negative amount is answered %+v, want a problem with 400", got)
	}
	tooMuch := strings.Replace(strings.Replace(lines[0], "1250", "1000000000000000", 1), "try-1", "try-5", 1)
	refused := curl(t, tooMuch)
	if refused.status != http.StatusPaymentRequired || refused.replayed {
		t.Errorf("too large an amount is answered %+v, want 402 and no replay", refused)
	}
	refused.replayed = true
	if got := curl(t, tooMuch); got != refused {
		t.Errorf("the refusal again is %+v, want %+v", got, refused)
	}

	if err := demo.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	// Wait closes the pipe, so what is left in it is read first.
	if _, err := io.Copy(io.Discard, output); err != nil {
		t.Error(err)
	}
	if code := demo.exitCode(t, demo.cmd.Wait()); code != 0 {
		t.Errorf("after ctrl-C: exit status %d, want 0\n%s", code, demo.stderr)
	}
	demo.checkDropped(t)
}

type demoReport struct {
	Requested     int  `json:"requested"`
	Effects       int  `json:"effects"`
	DoubleEffects int  `json:"double_effects"`
	LostAcks      int  `json:"lost_acks"`
	Replayed      int  `json:"replayed"`
	BalanceOK     bool `json:"balance_ok"`
	CommitsCut    int  `json:"commits_cut"`

	BurstRequested       int `json:"burst_requested"`
	BurstExecuted        int `json:"burst_executed"`
	BurstReplayed        int `json:"burst_replayed"`
	BurstMostConnections int `json:"burst_most_connections"`
	UnrelatedServed      int `json:"burst_unrelated_served"`
	UnrelatedIdleP50     int `json:"burst_unrelated_idle_p50_us"`
	UnrelatedIdleP99     int `json:"burst_unrelated_idle_p99_us"`
	UnrelatedP50         int `json:"burst_unrelated_p50_us"`
	UnrelatedP99         int `json:"burst_unrelated_p99_us"`
}

// sameCounts compares what does not depend on chance and time.
func (r demoReport) sameCounts(want *demoReport) bool {
	r.Replayed, r.CommitsCut, r.BurstMostConnections = want.Replayed, want.CommitsCut, want.BurstMostConnections
	r.UnrelatedServed, r.UnrelatedIdleP50, r.UnrelatedIdleP99 = want.UnrelatedServed, want.UnrelatedIdleP50, want.UnrelatedIdleP99
	r.UnrelatedP50, r.UnrelatedP99 = want.UnrelatedP50, want.UnrelatedP99
	return r == *want
}

// demoRun is one run of the demo on the server of these tests.
type demoRun struct {
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr *bytes.Buffer
	server string
}

func newDemo(t *testing.T, program string, args ...string) *demoRun {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), demoLimit)
	t.Cleanup(cancel)
	run := &demoRun{cmd: exec.CommandContext(ctx, program, args...), stderr: &bytes.Buffer{}, server: pgtest.URL(t)}
	run.cmd.Stderr = run.stderr
	for _, entry := range os.Environ() {
		// It says which server these tests may use, and would forbid this one.
		if !strings.HasPrefix(entry, "SAMECOMMIT_POSTGRES=") {
			run.cmd.Env = append(run.cmd.Env, entry)
		}
	}
	run.cmd.Env = append(run.cmd.Env, "SAMECOMMIT_POSTGRES_URL="+run.server)
	return run
}

// audit runs the demo to its end and returns what it printed.
func (d *demoRun) audit(t *testing.T) (report demoReport, code int) {
	t.Helper()
	d.cmd.Stdout = &d.stdout
	code = d.exitCode(t, d.cmd.Run())
	decoder := json.NewDecoder(&d.stdout)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&report); err != nil {
		t.Fatalf("standard output is not the report (%v)\n%s", err, d.stderr)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		t.Errorf("standard output goes on after the report (%v)", err)
	}
	d.checkDropped(t)
	return report, code
}

func (d *demoRun) exitCode(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("run the demo: %v\n%s", err, d.stderr)
	}
	return d.cmd.ProcessState.ExitCode()
}

var demoDatabase = regexp.MustCompile(`database (samecommit_demo_[0-9a-z]+)`)

// checkDropped looks for the database that the demo says it has made.
func (d *demoRun) checkDropped(t *testing.T) {
	t.Helper()
	match := demoDatabase.FindStringSubmatch(d.stderr.String())
	if match == nil {
		t.Fatalf("it does not say which database it made:\n%s", d.stderr)
	}
	pool, err := pgxpool.New(t.Context(), d.server)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var left bool
	if err := pool.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", match[1]).Scan(&left); err != nil {
		t.Fatal(err)
	}
	if left {
		t.Errorf("its database %s is still there", match[1])
	}
}

type curlAnswer struct {
	status   int
	replayed bool
	problem  bool
	body     string
}

// curl does what the shell would with such a line, on machines without curl too.
func curl(t *testing.T, line string) curlAnswer {
	t.Helper()
	request, err := parseCurl(t.Context(), line)
	if err != nil {
		t.Errorf("%v: %s", err, line)
		return curlAnswer{}
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Error(err)
		return curlAnswer{}
	}
	defer func() { _ = response.Body.Close() }() // read to its end below
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Error(err)
	}
	return curlAnswer{
		status:   response.StatusCode,
		replayed: response.Header.Get("Idempotent-Replayed") == "true",
		problem:  response.Header.Get("Content-Type") == "application/problem+json",
		body:     string(body),
	}
}

// shellWord is a word in single quotes or without any.
var shellWord = regexp.MustCompile(`'([^']*)'|[^\s']+`)

func parseCurl(ctx context.Context, line string) (*http.Request, error) {
	var words []string
	for _, match := range shellWord.FindAllStringSubmatch(line, -1) {
		if strings.HasPrefix(match[0], "'") {
			words = append(words, match[1])
		} else {
			words = append(words, match[0])
		}
	}
	var url, body string
	header := http.Header{}
	for i := 1; i < len(words); i++ {
		switch word := words[i]; {
		case word == "-i":
		case (word == "-H" || word == "-d") && i+1 < len(words):
			i++
			if word == "-d" {
				body = words[i]
				continue
			}
			name, value, _ := strings.Cut(words[i], ":")
			header.Set(name, strings.TrimSpace(value))
		case strings.HasPrefix(word, "http://"):
			url = word
		default:
			return nil, fmt.Errorf("this test does not know the word %q of a curl line", word)
		}
	}
	// curl posts where it has a body.
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header = header
	return request, nil
}
