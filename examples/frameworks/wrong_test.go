package frameworks

import (
	"context"
	"net/http"
	"testing"

	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/adaptor"
	"github.com/jackc/pgx/v5"
	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
)

// What each rule is there for. Nowhere is anything charged, since a handler that wrote
// nothing inside is undone. But clients are told other things, and a 404 is recorded.
func TestWrongWays(t *testing.T) {
	t.Parallel()
	refuses := func(context.Context, pgx.Tx, int32) error { return ErrDeclined }
	panics := func(context.Context, pgx.Tx, int32) error { panic("no luck") }
	for _, c := range []struct {
		name   string
		mount  mount
		then   after
		status int
		runs   int32
		keys   int
	}{
		{"chi, Use on a router that mounts others: the second run finds no route", onNetHTTP(chiUse), once(conflicts), http.StatusNotFound, 1, 1},
		{"gin, c.Next: the second run finds no handler", onNetHTTP(ginNext(true)), once(conflicts), http.StatusInternalServerError, 1, 0},
		{"gin, c.Next with gin's own writer: a success that is undone", onNetHTTP(ginNext(false)), books, http.StatusCreated, 1, 0},
		{"echo, WrapMiddleware: the error is written too late", onNetHTTP(echoWrap), refuses, http.StatusInternalServerError, 1, 0},
		{"echo, WrapMiddleware: the panic is written nowhere", onNetHTTP(echoWrap), panics, http.StatusOK, 1, 0},
		{"fiber, HTTPMiddleware: the handler runs later", onFiber(fiberMiddleware), books, http.StatusInternalServerError, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, c.mount, c.then)
			if got := a.post("k", `{"cents":500}`); got.status != c.status {
				t.Errorf("%d %q, want %d", got.status, got.text, c.status)
			}
			a.want("", c.runs)
			a.wantKeys(c.keys)
		})
	}
}

func chiUse(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
	router := chi.NewRouter()
	router.Use(keys)
	router.Route("/accounts/{account}", func(account chi.Router) { account.Post("/charges", chiCharge(charge)) })
	return router
}

// ginNext is a middleware of gin's, which gives the handler the writer of httpidem or, as
// adapters for gin do, forgets that.
func ginNext(replaces bool) func(func(http.Handler) http.Handler, Charge) http.Handler {
	return func(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
		engine := gin.New()
		engine.Use(func(c *gin.Context) {
			outside := c.Writer
			keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c.Request = r
				if replaces {
					c.Writer = ginWriter{outside, w}
				}
				c.Next()
			})).ServeHTTP(outside, c.Request)
		})
		engine.POST("/accounts/:account/charges", ginCharge(charge))
		return engine
	}
}

type ginWriter struct {
	gin.ResponseWriter
	inside http.ResponseWriter
}

func (w ginWriter) Header() http.Header               { return w.inside.Header() }
func (w ginWriter) WriteHeader(status int)            { w.inside.WriteHeader(status) }
func (w ginWriter) Write(data []byte) (int, error)    { return w.inside.Write(data) }
func (w ginWriter) WriteString(s string) (int, error) { return w.inside.Write([]byte(s)) }

func echoWrap(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
	e := echo.New()
	e.Use(middleware.Recover())
	e.POST("/accounts/:account/charges", echoCharge(charge), echo.WrapMiddleware(keys))
	return e
}

func fiberMiddleware(keys func(http.Handler) http.Handler, charge Charge) *fiber.App {
	app := fiber.New()
	app.Post("/accounts/:account/charges", adaptor.HTTPMiddleware(keys), fiberCharge(charge))
	return app
}
