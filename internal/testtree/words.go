package testtree

import "strings"

// wordList is what names and texts are made of.
var wordList = strings.Fields(`
access account action active adapter address agent alias align allow anchor append apply array assert asset async atomic attach attr audit auth
author backend backup balance bank base batch begin binary bind bitmap block body boolean border bound branch bridge broker bucket budget buffer
build bundle button bypass byte cache call cancel canvas capacity card cart catalog cell chain channel char charge check child chunk claim class
clean client clock clone close cluster code codec collect color column command commit compare compile complete compute config connect console
const contact container content context control convert cookie copy core count create cursor custom cycle daemon dash data date debug decode
default define delay delete delta depth derive detail device dialog diff digest direct disable disk dispatch display document domain done
download draft drain drive driver drop dump duration dynamic echo edge edit effect element email embed empty enable encode encrypt end engine
entity entry enum env epoch equal error escape event exact exclude exec expand expect expire export expr extend extra factory fail fallback
feature fetch field figure file filter final find first flag flat flow flush focus folder font force fork form format forward frame free
frequency full function future gate gather general get global grant graph grid group guard handle hash head header health heap height help
hidden hint history hold hook host hour icon ident image import include index info inherit init inner input insert inspect install instance
integer interface internal invoice issue item iterate job join journal json jump keep kernel key kind label language large last latency launch
layer layout lazy leader leaf lease left length level library limit line link list listen literal load local lock log login lookup loop lower
machine macro mail main manager manifest map margin mark mask master match max measure media member memory menu merge message meta method
metric middle migrate min minute mirror mode model module monitor month mount move mutex name native nested network next node normal notify
null number object observe offset open operator option order origin outer output owner pack package page panel parallel param parent parse
part password patch path pattern pause payload payment peer pending percent period permit person phase pipe pixel place plan player plugin
point policy poll pool port position post power prefix prepare present press previous price primary print priority private process product
profile progress project promise proof property proto provider proxy public publish pull push quality query queue quick quota random range
rate ratio raw reader ready reason receive record recover redirect reduce refer refresh region register reject relation release reload remote
remove rename render repeat replace replica reply report request require reserve reset resize resolve resource response restart restore result
resume retry return reverse review right role rollback root rotate round route row rule runtime safe sample save scale scan schedule schema
scope score screen script scroll search second secret section segment select send sensor sequence serial server service session setting setup
shadow shape share shard shell shift short show shutdown signal simple single size skip sleep slice slot small snapshot socket sort source
space span spec split stack stage standard start state static status step stop storage store stream strict string stripe struct style submit
subscribe success suffix summary support suspend switch symbol sync syntax system table tag target task template tenant test text theme thread
threshold throttle ticket time timeout title toggle token tool topic total trace track traffic transfer transform transit tree trigger trim
trust tuple type union unique unit unlock update upgrade upload upper usage user valid value variable vector vendor verify version view
virtual visible visit volume wait walk warning watch weight widget width window wire word worker wrapper write writer year yield zone
`)
