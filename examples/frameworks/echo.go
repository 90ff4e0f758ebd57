package frameworks

import (
	"errors"
	"net/http"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"
)

// Echo has the middleware at the route, by echoKeys.
func Echo(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
	e := echo.New()
	e.Use(middleware.Recover())
	e.POST("/accounts/:account/charges", echoCharge(charge), echoKeys(keys))
	return e
}

// echoKeys does what echo.WrapMiddleware does not: the error of a handler is written
// inside, where it is part of the answer, and the outside writer comes back, also after a
// panic. With echo.WrapMiddleware an error is a 500 and no answer is recorded, and a panic
// that is recovered outside is written to a writer that takes no more: an empty 200.
func echoKeys(keys func(http.Handler) http.Handler) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c *echo.Context) error {
			request, response := c.Request(), c.Response()
			defer func() {
				c.SetRequest(request)
				c.SetResponse(response)
			}()
			keys(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c.SetRequest(r)
				c.SetResponse(echo.NewResponse(w, c.Logger()))
				if err := next(c); err != nil {
					c.Echo().HTTPErrorHandler(c, err)
				}
			})).ServeHTTP(response, request)
			return nil
		}
	}
}

func echoCharge(charge Charge) echo.HandlerFunc {
	return func(c *echo.Context) error {
		var asked request
		if err := c.Bind(&asked); err != nil {
			return echo.NewHTTPError(http.StatusBadRequest, `send a body such as {"cents":500}`)
		}
		id, err := charge(c.Request().Context(), c.Param("account"), asked.Cents)
		if errors.Is(err, ErrDeclined) {
			return echo.NewHTTPError(http.StatusPaymentRequired, "the card was declined: try another one")
		}
		if err != nil {
			return err // a 500
		}
		return c.JSON(http.StatusCreated, receipt{id})
	}
}
