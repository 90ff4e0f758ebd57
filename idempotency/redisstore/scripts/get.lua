-- A script, so that it is never sent to a replica.
return {micros(now), redis.call('GET', key) or ''}
