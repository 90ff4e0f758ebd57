package frameworks

import (
	"errors"
	"net/http"

	"github.com/gofiber/fiber/v3"
	"github.com/gofiber/fiber/v3/middleware/adaptor"
	"github.com/gofiber/fiber/v3/middleware/recover"
	"github.com/valyala/fasthttp"
)

// Fiber has the middleware around the handler, by fiberKeys.
func Fiber(keys func(http.Handler) http.Handler, charge Charge) *fiber.App {
	app := fiber.New()
	app.Use(recover.New())
	app.Post("/accounts/:account/charges", fiberKeys(keys, fiberCharge(charge)))
	return app
}

// fiberKeys runs a handler of fiber's inside of the middleware. The adaptor is that for
// handlers: adaptor.HTTPMiddleware calls what comes next only after the middleware has
// returned, when there is no transaction any more.
//
// A handler must take c.Context(). It ends after Config.Timeout, and not with the client.
func fiberKeys(keys func(http.Handler) http.Handler, handler fiber.Handler) fiber.Handler {
	return func(c fiber.Ctx) error {
		return adaptor.HTTPHandler(keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { //nolint:contextcheck // r has it.
			// The answer of one run goes to w and leaves no trace in c. There is what
			// the middlewares outside have set.
			outside, ctx := fasthttp.AcquireResponse(), c.Context()
			defer fasthttp.ReleaseResponse(outside)
			c.Response().CopyTo(outside)
			c.Response().Reset()
			c.SetContext(r.Context())
			defer func() {
				outside.CopyTo(c.Response())
				c.SetContext(ctx)
			}()
			err := handler(c)
			if err != nil {
				err = c.App().ErrorHandler(c, err)
			}
			if err != nil { // fiber answers 500 then, too
				http.Error(w, "Internal Server Error", http.StatusInternalServerError)
				return
			}
			for name, value := range c.Response().Header.All() {
				w.Header().Add(string(name), string(value))
			}
			w.WriteHeader(c.Response().StatusCode())
			_, _ = w.Write(c.Response().Body()) // into memory
		})))(c)
	}
}

func fiberCharge(charge Charge) fiber.Handler {
	return func(c fiber.Ctx) error {
		var asked request
		if err := c.Bind().JSON(&asked); err != nil {
			return fiber.NewError(fiber.StatusBadRequest, `send a body such as {"cents":500}`)
		}
		id, err := charge(c.Context(), c.Params("account"), asked.Cents)
		if errors.Is(err, ErrDeclined) {
			return fiber.NewError(fiber.StatusPaymentRequired, "the card was declined: try another one")
		}
		if err != nil {
			// Not err itself, whose text fiber would show to the client.
			return fiber.NewError(fiber.StatusInternalServerError, "the charge could not be booked")
		}
		return c.Status(fiber.StatusCreated).JSON(receipt{id})
	}
}
