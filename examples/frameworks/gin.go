package frameworks

import (
	"errors"
	"net/http"

	"github.com/gin-gonic/gin"
)

// Gin has what is outside of the middleware, as Recovery and authentication, in the engine
// that it returns.
func Gin(keys func(http.Handler) http.Handler, charge Charge) http.Handler {
	engine := gin.New()
	engine.Use(gin.Recovery())
	ginPost(engine, keys, "/accounts/:account/charges", ginCharge(charge))
	return engine
}

// ginPost gives the route an engine of its own inside of the middleware, which makes a new
// gin.Context for each run. As a middleware of gin's that calls c.Next it would be wrong:
// the second c.Next of one context, after a deadlock, finds no handler left.
func ginPost(engine *gin.Engine, keys func(http.Handler) http.Handler, path string, handler gin.HandlerFunc) {
	inside := gin.New()
	inside.POST(path, handler)
	engine.POST(path, gin.WrapH(keys(inside)))
}

func ginCharge(charge Charge) gin.HandlerFunc {
	return func(c *gin.Context) {
		var asked request
		if err := c.ShouldBindJSON(&asked); err != nil {
			c.AbortWithStatusJSON(http.StatusBadRequest, gin.H{"error": `send a body such as {"cents":500}`})
			return
		}
		id, err := charge(c.Request.Context(), c.Param("account"), asked.Cents)
		switch {
		case errors.Is(err, ErrDeclined):
			c.AbortWithStatusJSON(http.StatusPaymentRequired, gin.H{"error": "the card was declined: try another one"})
		case err != nil:
			c.AbortWithStatusJSON(http.StatusInternalServerError, gin.H{"error": "the charge could not be booked"})
		default:
			c.JSON(http.StatusCreated, receipt{id})
		}
	}
}
