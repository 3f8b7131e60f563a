-- What the nginx of servers.py does beside serving: faults, counters, and the routes of the hub.
--
-- A rule is a table of switches, kept as a query string under a place: a path, "*.tar" for all paths
-- with that ending, or "*". All rules of a request's places that take effect are merged; the more
-- exact place wins.
local M = {}

local rules, counts, log = ngx.shared.rules, ngx.shared.counts, ngx.shared.log
local KEPT = 20000 -- requests in the log
local PIECE = string.rep("\0", 65536)

local function places(uri)
  return { uri, "*" .. (uri:match("%.[^./]*$") or ""), "*" }
end

local function takes_effect(place, rule)
  if rule.method and not ("," .. rule.method .. ","):find("," .. ngx.req.get_method() .. ",", 1, true) then
    return false
  end
  if rule.signed and not (ngx.var.http_authorization or ""):find(rule.signed, 1, true) then
    return false
  end
  if rule.after or rule.times then
    local number = rules:incr("met " .. place, 1, 0)
    local first = tonumber(rule.after or 0)
    if number <= first or number > first + tonumber(rule.times or math.huge) then
      return false
    end
  end
  return math.random() < tonumber(rule.probability or 1)
end

local function find_fault()
  local fault, seen = {}, {}
  for _, place in ipairs(places(ngx.var.uri)) do
    local text = not seen[place] and rules:get("rule " .. place)
    seen[place] = true
    if text then
      local rule = ngx.decode_args(text, 0)
      if takes_effect(place, rule) then
        for name, value in pairs(rule) do
          fault[name] = fault[name] or value
        end
      end
    end
  end
  return fault
end

local function record()
  local method = ngx.req.get_method()
  counts:incr(method .. " " .. ngx.var.uri, 1, 0)
  if log:rpush("requests", method .. " " .. ngx.var.request_uri .. " " .. ngx.encode_args(ngx.req.get_headers(0))) > KEPT then
    log:lpop("requests")
  end
end

local function sleep(seconds)
  if seconds > 0 then
    ngx.sleep(seconds)
  end
end

-- Wait without a byte, until the time is over or the faults are switched off.
local function wait(seconds)
  local heals, last = rules:get("heals"), ngx.now() + seconds
  while ngx.now() < last and rules:get("heals") == heals do
    ngx.sleep(0.05)
  end
end

local function answer(status, headers, text)
  ngx.status = status
  for name, value in pairs(headers) do
    ngx.header[name] = value
  end
  ngx.header["Content-Length"] = #text
  ngx.print(text)
  return ngx.exit(ngx.OK)
end

-- Phase of access: count the request, then wait, or leave for a location that fails.
function M.access()
  record()
  local fault = find_fault()
  ngx.var.fault = ngx.encode_args(fault)
  sleep(tonumber(fault.latency or rules:get("latency") or 0))
  local rate = tonumber(fault.rate or rules:get("rate") or 0)
  if rate > 0 then
    ngx.var.limit_rate = math.floor(rate)
  end
  for name in (fault.ignore or ""):gmatch("[^,]+") do
    ngx.req.clear_header(name)
  end
  if fault.status or fault.redirect or fault.zeros or fault.cut or fault.stall then
    return ngx.exec("@fault")
  end
  if fault.gzip then
    ngx.req.set_header("Accept-Encoding", "gzip")
    return ngx.exec("@gzip")
  end
end

-- Phase of logging: the bytes of the body are counted when all of them are sent.
function M.sent()
  log:incr("sent", tonumber(ngx.var.body_bytes_sent), 0)
end

-- Phase of access where URLs are signed: an expired one is refused.
function M.signed()
  local expires = tonumber(ngx.var.arg_Expires or "")
  if not expires or ngx.var.arg_Signature ~= ngx.md5(ngx.var.uri .. expires) then
    return answer(403, {}, "<Error><Code>SignatureDoesNotMatch</Code></Error>")
  end
  if expires <= ngx.now() then
    return answer(403, {}, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
  end
end

-- Phase of headers: those that the fault sets, or removes where they are empty.
function M.headers()
  local fault = ngx.decode_args(ngx.var.fault, 0)
  for name, value in pairs(ngx.decode_args(fault.headers or "", 0)) do
    ngx.header[name] = value ~= "" and value or nil
  end
end

local function send_zeros(size)
  ngx.header["Content-Length"] = size
  while size > 0 do
    ngx.print(PIECE:sub(1, size))
    if not ngx.flush(true) then
      return
    end
    size = size - #PIECE
  end
end

-- Content of @fault.
function M.fault()
  local fault = ngx.decode_args(ngx.var.fault, 0)
  ngx.req.read_body()
  if fault.zeros then
    ngx.status = tonumber(fault.status or 200)
    return send_zeros(tonumber(fault.zeros))
  end
  if fault.status or fault.redirect then
    local headers = { ["Retry-After"] = fault.retry_after, ["Location"] = fault.redirect }
    return answer(tonumber(fault.status or 302), headers, fault.text or "")
  end
  local stall, sent = tonumber(fault.stall or 0), tonumber(fault.cut or fault.at or 0)
  if sent == 0 then
    wait(stall)
    stall = 0
  end
  local real = ngx.location.capture("/_raw", {
    method = ngx["HTTP_" .. ngx.req.get_method()],
    always_forward_body = true,
  })
  ngx.status = real.status
  for name, value in pairs(real.header) do
    if name ~= "Connection" and name ~= "Transfer-Encoding" then
      ngx.header[name] = value
    end
  end
  if ngx.req.get_method() ~= "HEAD" then
    ngx.header["Content-Length"] = #real.body
  end
  ngx.print(real.body:sub(1, sent))
  ngx.flush(true)
  if sent < #real.body then
    wait(stall)
  end
  if fault.cut then
    return ngx.exit(444) -- closes the connection
  end
  ngx.print(real.body:sub(sent + 1))
end

local controls = {}

function controls.fail(arguments)
  rules:delete("met " .. arguments.place)
  rules:set("rule " .. arguments.place, arguments.rule)
end

function controls.heal()
  for _, key in ipairs(rules:get_keys(0)) do
    if key:find("^rule ") or key:find("^met ") then
      rules:delete(key)
    end
  end
  rules:incr("heals", 1, 0)
end

function controls.set(arguments)
  rules:set(arguments.name, tonumber(arguments.value))
end

function controls.forget()
  counts:flush_all()
  log:flush_all()
end

function controls.sent()
  ngx.say(log:get("sent") or 0)
end

function controls.counts()
  for _, key in ipairs(counts:get_keys(0)) do
    ngx.say(counts:get(key), " ", key)
  end
end

function controls.requests()
  for _ = 1, log:llen("requests") do
    local line = log:lpop("requests")
    log:rpush("requests", line)
    ngx.say(line)
  end
end

function M.control()
  ngx.header["Content-Type"] = "text/plain"
  local control = controls[ngx.var.uri:match("[^/]*$")]
  if not control then
    return ngx.exit(404)
  end
  control(ngx.req.get_uri_args(0))
end

function M.start(latency, rate)
  math.randomseed(0)
  rules:set("latency", latency)
  rules:set("rate", rate)
end

-- The hub. Python writes its answers as files below root; what follows only chooses among them.

local function read(...)
  local file = io.open(table.concat({ ... }, "/"), "rb")
  if not file then
    return nil
  end
  local text = file:read("*a")
  file:close()
  return text
end

local function refuse(status, code, message)
  local headers = { ["X-Error-Code"] = code, ["X-Error-Message"] = message, ["Content-Type"] = "application/json" }
  return answer(status, headers, '{"error":"' .. message .. '"}')
end

local function entry_of(root, repo, commit, path)
  local entry = read(root, repo, commit, "files", (ngx.escape_uri(path)))
  if entry then
    return entry:match("(%S+) (%S+) (%S+)")
  end
end

local function list(root, repo, commit, path)
  local arguments = ngx.req.get_uri_args(0)
  local depth = (arguments.recursive == "true" or arguments.recursive == "1") and "all" or "one"
  local page = tonumber(ngx.decode_base64(arguments.cursor or "") or "") or 0
  local pages = table.concat({ root, repo, commit, depth, ngx.escape_uri("/" .. path) }, "/")
  local text = read(pages .. "." .. page)
  if not text then
    return refuse(404, "EntryNotFound", path .. " does not exist")
  end
  local headers = { ["Content-Type"] = "application/json" }
  if read(pages .. "." .. page + 1) then
    arguments.cursor = ngx.encode_base64(tostring(page + 1))
    headers["Link"] = string.format(
      '<%s://%s%s?%s>; rel="next"',
      ngx.var.scheme, ngx.var.http_host, ngx.var.request_uri:match("^[^?]*"), ngx.encode_args(arguments)
    )
  end
  return answer(200, headers, text)
end

local function resolve(root, cdn, repo, commit, path, quoted)
  local kind, oid, size = entry_of(root, repo, commit, path)
  if not kind then
    return refuse(404, "EntryNotFound", "Entry not found")
  end
  local headers = { ["X-Repo-Commit"] = commit }
  if kind == "plain" then
    headers["ETag"] = '"' .. oid .. '"'
    headers["Location"] = table.concat({ "/api/resolve-cache/datasets", repo, commit, quoted }, "/")
    return answer(307, headers, "")
  end
  local uri = "/" .. repo .. "/" .. oid
  local expires = math.floor(ngx.now() + (rules:get("lifetime") or 3600))
  headers["X-Linked-Etag"] = '"' .. oid .. '"'
  headers["X-Linked-Size"] = size
  headers["Location"] = cdn .. uri .. "?" .. ngx.encode_args({ Expires = expires, Signature = ngx.md5(uri .. expires) })
  return answer(302, headers, "")
end

-- Content of the hub: https://huggingface.co/docs/hub/api, for datasets.
function M.hub(root, cdn)
  local raw = ngx.var.request_uri:match("^[^?]*")
  local repo, rest = raw:match("^/api/datasets/([^/]+/[^/]+)(.*)$")
  local route, revision, path
  if repo then
    route, revision, path = rest:match("^/(tree)/([^/]+)/?(.*)$")
    if not route then
      route, revision = "info", rest == "" and "main" or rest:match("^/revision/([^/]+)$")
    end
  else
    repo, revision, path = raw:match("^/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
    route = "resolve"
    if not repo then
      repo, revision, path = raw:match("^/api/resolve%-cache/datasets/([^/]+/[^/]+)/([^/]+)/(.+)$")
      route = "cache"
    end
  end
  if not repo or not revision then
    return refuse(404, nil, "Not Found")
  end
  local token = read(root, repo, "token")
  if not token or (token ~= "" and ngx.var.http_authorization ~= "Bearer " .. token) then
    return refuse(401, "RepoNotFound", "Invalid username or password.")
  end
  local commit = read(root, repo, "revisions", (ngx.escape_uri(ngx.unescape_uri(revision))))
  if not commit then
    return refuse(404, "RevisionNotFound", "Invalid rev id: " .. revision)
  end
  if route == "info" then
    return answer(200, { ["Content-Type"] = "application/json" }, read(root, repo, commit, "info"))
  end
  local plain = ngx.unescape_uri(path)
  if route == "tree" then
    return list(root, repo, commit, plain)
  end
  if route == "resolve" then
    return resolve(root, cdn, repo, commit, plain, path)
  end
  local _, oid = entry_of(root, repo, commit, plain)
  if not oid then
    return refuse(404, "EntryNotFound", "Entry not found")
  end
  return ngx.exec("/_blobs/" .. repo .. "/" .. oid)
end

return M
