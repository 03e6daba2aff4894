# shellcheck shell=bash disable=SC2034,SC2154 # these files share their variables
# Scenario: rights. What the ServiceAccounts may do, asked of the authorizer and tried with a real token.

# Asks for an account: may ACCOUNT VERB RESOURCE [FLAGS…].
may() {
    local account=system:serviceaccount:$NAMESPACE:$1
    shift
    [[ $(k auth can-i "$@" --as "$account" 2>/dev/null || true) == yes ]]
}

must() {
    may "$@" || fail "ServiceAccount $1 may not '${*:2}' and needs it"
    allowed=$((allowed + 1))
}

must_not() {
    ! may "$@" || fail "ServiceAccount $1 may '${*:2}' and must not"
    refused=$((refused + 1))
}

scenario_rights() {
    if k auth can-i impersonate serviceaccounts >/dev/null 2>&1; then
        ask_the_authorizer
    else
        figure "this login may not impersonate ServiceAccounts: what they may do is tried with a token alone"
    fi
    try_for_real
}

ask_the_authorizer() {
    local allowed=0 refused=0 account
    must autoscale get deployments/model --subresource scale
    must autoscale patch deployments/model --subresource scale
    must autoscale get deployments/model
    must autoscale list pods
    must autoscale patch pods
    must autoscale create events.events.k8s.io
    must autoscale create leases.coordination.k8s.io
    must autoscale get leases.coordination.k8s.io/autoscale
    must autoscale update leases.coordination.k8s.io/autoscale
    must autoscale list horizontalpodautoscalers.autoscaling
    must dispatch list endpointslices.discovery.k8s.io
    must dispatch watch endpointslices.discovery.k8s.io
    must_not autoscale patch deployments/dispatch --subresource scale
    must_not autoscale update deployments/model --subresource scale
    must_not autoscale patch deployments/model
    must_not autoscale delete deployments/model
    must_not autoscale create deployments
    must_not autoscale delete pods
    must_not autoscale create pods
    must_not autoscale create pods --subresource exec
    must_not autoscale update leases.coordination.k8s.io/other
    must_not autoscale get secrets
    must_not autoscale list secrets
    must_not autoscale get configmaps
    must_not dispatch get pods
    must_not dispatch get secrets
    must_not dispatch patch deployments/model --subresource scale
    for account in model monitor; do
        must_not "$account" list pods
        must_not "$account" get secrets
        must_not "$account" list endpointslices.discovery.k8s.io
    done
    figure "$allowed rights that are needed, none of $refused others"
}

# The same with the account's own token against the API server, not as somebody who may impersonate.
try_for_real() {
    local token base=/apis/apps/v1/namespaces/$NAMESPACE/deployments
    token=$(k create token autoscale --duration 10m 2>"$folder/token.log" || true)
    if [[ -z $token ]]; then
        token=$(token_of_old)
        [[ -n $token ]] || {
            figure "not tried with a token: $(tail -n 1 "$folder/token.log")"
            return 0
        }
    fi
    as_account "$token" "$folder/account.kubeconfig"
    api_port "$folder/account.kubeconfig" || fail "kubectl proxy does not start with the account's token"
    printf '{"metadata":{"annotations":{"elastic-test":"1"}}}' >"$folder/nothing.json"
    printf '{"spec":{"replicas":%s}}' "$(wanted_replicas)" >"$folder/same.json"
    printf '{"spec":{"replicas":1}}' >"$folder/one.json"
    try 200 GET "$base/model/scale"
    try 200 PATCH "$base/model/scale?dryRun=All" "$folder/same.json"
    try 403 PATCH "$base/dispatch/scale?dryRun=All" "$folder/one.json"
    try 403 PATCH "$base/model?dryRun=All" "$folder/nothing.json"
    try 403 GET "/api/v1/namespaces/$NAMESPACE/secrets"
    try 403 DELETE "/api/v1/namespaces/$NAMESPACE/pods/$(pods model | sed -n 1p)?dryRun=All"
    try 403 GET "/apis/apps/v1/namespaces/kube-system/deployments"
    rm -f "$folder/account.kubeconfig"
    figure "the same with the account's token: scale of model 200; scale of dispatch, secrets, deletion of a pod 403"
}

try() {
    local expected=$1 method=$2 path=$3 file=${4:-} type=
    [[ $method != PATCH ]] || type=application/merge-patch+json
    http "$method" "$opened" "$path" "${file:-/dev/null}" "$type"
    [[ $status == "$expected" ]] || fail "$method $path with the account's token is $status, not $expected"
}

# A kubeconfig with the cluster's address and certificate and this token alone: a client certificate would win.
as_account() {
    local token=$1 file=$2 context
    (
        umask 077
        k config view --raw --minify --flatten >"$file"
    )
    context=$(kubectl --kubeconfig "$file" config current-context)
    kubectl --kubeconfig "$file" config unset users >/dev/null
    kubectl --kubeconfig "$file" config set-credentials account --token "$token" >/dev/null
    kubectl --kubeconfig "$file" config set-context "$context" --user account --namespace "$NAMESPACE" >/dev/null
}

# Before 1.24 every account has a Secret with a token.
token_of_old() {
    local secret
    secret=$(field serviceaccount/autoscale '{.secrets[*].name}' | awk '{ print $1 }')
    [[ -n $secret ]] && field "secret/$secret" '{.data.token}' | base64 --decode
}
