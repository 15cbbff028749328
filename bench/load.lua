-- One kind of work for wrk: every request differs, so that nothing is a duplicate.
-- Usage: wrk -s load.lua URL -- ITEM NONCE
local words = {}
for word in ([[
opening hours question about your workshop next spring please could tell whether
there are places left for two people and what it costs to bring our own tools kind
regards from the garden village library bicycle kitchen morning window letter paper
river stone bridge concert market recipe bread coffee winter blanket lantern piano
]]):gmatch("%a+") do words[#words + 1] = word end

local item, nonce, n = nil, nil, 0
local agent = "Mozilla/5.0 (X11; Linux x86_64; rv:%d.0) Gecko/20100101 Firefox/%d.0"
local headers = {
  ["Content-Type"] = "application/json",
  ["Accept"] = "application/json",
  ["Accept-Language"] = "en-GB,en;q=0.8",
  ["Origin"] = "https://site.example",
  ["Referer"] = "https://site.example/pages/contact",
}

local function text(length)
  local chosen = {}
  for i = 1, length do chosen[i] = words[math.random(#words)] end
  return table.concat(chosen, " ")
end

local build = {}
function build.contact()
  return "POST", "/contact", string.format(
    '{"name": "Ada Lovelace", "email": "ada.%s.%d@example.com", '
      .. '"subject": "A question", "message": "Hello, %s."}', nonce, n, text(30))
end
function build.signup()
  return "POST", "/newsletter",
    string.format('{"email": "reader.%s.%d@example.com"}', nonce, n)
end
function build.hit()
  return "POST", "/hits", string.format('{"page": "/pages/%d"}', n % 100)
end
function build.badge()
  return "GET", "/hits.svg?count=false&page=/pages/" .. n % 100
end
function build.read()
  return "GET", "/hits?page=/pages/" .. n % 100
end
build["isso-post"] = function()
  return "POST", "/new?uri=/pages/" .. n % 100, string.format(
    '{"title": "A page", "author": "Ada Lovelace", "email": "ada.%s.%d@example.com", '
      .. '"text": "Hello, %s."}', nonce, n, text(30))
end
build["isso-count"] = function()
  return "POST", "/count", '["/pages/' .. n % 100 .. '"]'
end

-- Everything differs that a server might keep: many of these are refused.
local kinds = { "contact", "signup", "hit", "badge", "read" }
function build.varied()
  local r = math.random
  headers["X-Forwarded-For"] = string.format("%d.%d.%d.%d", r(223), r(255), r(255), r(255))
  headers["Origin"] = r(4) > 1 and "https://site.example" or "https://" .. text(1) .. r(1e6)
  headers["Accept"] = r(3) > 1 and "application/json" or "text/html,*/*;q=0." .. r(1e4)
  headers["Accept-Language"] = string.format("%s-%d,en;q=0.%d", text(1), r(999), r(9))
  headers["Referer"] = "https://site.example/" .. text(2):gsub(" ", "/") .. r(1e6)
  local method, path, body = build[kinds[r(#kinds)]]()
  path = path:gsub("/pages/%d+", "/varied/" .. r(1e6))
  if body then body = body:gsub("/pages/%d+", "/varied/" .. r(1e6)) end
  if path:find("svg") then path = path .. "&label=" .. text(1) .. r(1e4) end
  return method, path, body
end

function init(args)
  item, nonce = args[1], args[2]
  math.randomseed(tonumber(nonce))
end

function request()
  n = n + 1
  local version = item == "varied" and math.random(1e6) or 100 + n % 50
  headers["User-Agent"] = agent:format(version, version)
  local method, path, body = build[item]()
  return wrk.format(method, path, headers, body)
end

function done(summary, latency)
  local e = summary.errors
  print(string.format(
    'RESULT {"requests": %d, "seconds": %.6f, "p50": %.1f, "p99": %.1f, '
      .. '"refused": %d, "broken": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50),
    latency:percentile(99), e.status, e.connect + e.read + e.write + e.timeout))
end
