-- wrk script: sends the lines of a file as bodies, in rotation. usage: wrk -s post.lua URL -- FILE
local requests, next_one, count = {}, 0, 0
function init(args)
  wrk.headers["Content-Type"] = "application/json"
  for line in io.lines(args[1]) do
    count = count + 1
    requests[count] = wrk.format("POST", nil, wrk.headers, line)
  end
end
function request()
  next_one = next_one % count + 1
  return requests[next_one]
end
function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format('JSON {"requests":%d,"seconds":%.3f,"p50_ms":%.3f,"p99_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    e.status + e.connect + e.read + e.write + e.timeout))
end
